"""Command ``compare``: train gates or take finished runs, compare and recommend one."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("compare")

if __name__ == "__main__":
    sys.exit(main())
