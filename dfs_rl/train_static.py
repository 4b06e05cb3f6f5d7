"""Command ``train_static``: search a static bit table, a baseline of gates."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_static")

if __name__ == "__main__":
    sys.exit(main())
