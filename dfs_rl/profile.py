"""Command ``profile``: measure the time of each part of a network on this machine."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("profile")

if __name__ == "__main__":
    sys.exit(main())
