"""Command ``train_cascade``: choose a confidence cascade, a baseline of gates."""

import sys

from dfs_rl.experiments.cascade_config import TrainCascadeConfig
from dfs_rl.experiments.command import main_of

main = main_of(TrainCascadeConfig)

if __name__ == "__main__":
    sys.exit(main())
