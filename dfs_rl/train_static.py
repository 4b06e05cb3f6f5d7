"""``python -m dfs_rl.train_static``: find one table of bits for all images, the baseline of every gate that looks at its image."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.static_training import COMMAND
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
