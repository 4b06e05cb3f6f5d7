"""Command ``export``: write a trained gate with its network into a file."""

import sys

from dfs_rl.experiments.command import main_of
from dfs_rl.experiments.deployment_config import ExportConfig

main = main_of(ExportConfig)

if __name__ == "__main__":
    sys.exit(main())
