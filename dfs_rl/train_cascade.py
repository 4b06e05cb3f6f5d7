"""Command ``train_cascade``: tune rules over several passes, such as a cascade."""

import sys

from dfs_rl.experiments.cascade_config import TrainCascadeConfig
from dfs_rl.experiments.command import main_of

main = main_of(TrainCascadeConfig)

if __name__ == "__main__":
    sys.exit(main())
