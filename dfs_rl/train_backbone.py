"""Command ``train_backbone``: train a supernet of fixed or adaptive depth."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_backbone")

if __name__ == "__main__":
    sys.exit(main())
