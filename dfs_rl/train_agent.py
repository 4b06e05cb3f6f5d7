"""Command ``train_agent``: train a gate by reinforcement learning."""

import sys

from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.command import main_of

main = main_of(TrainAgentConfig)

if __name__ == "__main__":
    sys.exit(main())
