"""Command ``train_agent``: train a gate by reinforcement learning."""

import sys

from dfs_rl.experiments.command import main_of

main = main_of("train_agent")

if __name__ == "__main__":
    sys.exit(main())
