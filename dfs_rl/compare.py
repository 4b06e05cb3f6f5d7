"""Command ``compare``: train gates or take finished runs, compare and recommend one."""

import sys

from dfs_rl.experiments.command import main_of
from dfs_rl.experiments.comparison_config import CompareConfig

main = main_of(CompareConfig)

if __name__ == "__main__":
    sys.exit(main())
