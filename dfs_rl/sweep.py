"""Command ``sweep``: search settings of a training, and retrain the best on fresh seeds."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("sweep")

if __name__ == "__main__":
    sys.exit(main())
