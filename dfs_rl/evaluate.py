"""Command ``evaluate``: evaluate a run on its test split, with every baseline."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("evaluate")

if __name__ == "__main__":
    sys.exit(main())
