"""Command ``train_backbone``: train a supernet of fixed or adaptive depth."""

import sys

from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.command import main_of

main = main_of(TrainBackboneConfig)

if __name__ == "__main__":
    sys.exit(main())
