"""Command ``train_exits``: add exits to a trained backbone."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_exits")

if __name__ == "__main__":
    sys.exit(main())
