"""Command ``train_static``: search a static bit table, a baseline of gates."""

import sys

from dfs_rl.experiments.command import main_of
from dfs_rl.experiments.search_config import TrainStaticConfig

main = main_of(TrainStaticConfig)

if __name__ == "__main__":
    sys.exit(main())
