"""Command ``train_cascade``: choose a confidence cascade, a baseline of gates."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_cascade")

if __name__ == "__main__":
    sys.exit(main())
