"""Command ``train_cascade``: choose a confidence cascade, a baseline of gates."""

import sys

from dfs_rl.experiments.command import main_of
from dfs_rl.experiments.search_config import TrainCascadeConfig

main = main_of(TrainCascadeConfig)

if __name__ == "__main__":
    sys.exit(main())
