"""Command ``export``: write a trained gate with its network into a file."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("export")

if __name__ == "__main__":
    sys.exit(main())
