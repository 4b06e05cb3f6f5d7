"""Command ``train_agent``: train a gate by reinforcement learning."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.agent_training import COMMAND
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        COMMAND.run,
        COMMAND.config_type,
        prog=COMMAND.prog,
        description=COMMAND.description,
        kind=COMMAND.kind,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
