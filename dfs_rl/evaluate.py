"""Command: evaluate a run on its test split, with every baseline that its gate should beat."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.evaluation import PROG, EvaluateConfig, run
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        run,
        EvaluateConfig,
        prog=PROG,
        description="Evaluate a run on its test split, with every baseline.",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
