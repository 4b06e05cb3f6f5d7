"""Command ``train_cascade``: tune rules over several passes, such as a cascade."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_cascade")

if __name__ == "__main__":
    sys.exit(main())
