"""``python -m dfs_rl.train_static``: find one table of bits for all images, the rival of every gate that looks at its image."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.gate_run import run_gate_command
from dfs_rl.experiments.static_training import COMMAND


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_gate_command(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
