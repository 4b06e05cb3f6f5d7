"""Command ``train_gumbel``: train a gate by supervision."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_gumbel")

if __name__ == "__main__":
    sys.exit(main())
