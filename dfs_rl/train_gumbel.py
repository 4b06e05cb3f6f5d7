"""Command ``train_gumbel``: train a gate by supervision."""

import sys

from dfs_rl.experiments.command import main_of
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig

main = main_of(TrainGumbelConfig)

if __name__ == "__main__":
    sys.exit(main())
