"""``python -m dfs_rl.train_gumbel``: learn by supervision which bits each layer of a backbone should spend on each image."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.supervised_training import COMMAND
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
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
