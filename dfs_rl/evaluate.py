"""Command ``evaluate``: evaluate a run on its test split, with every baseline."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.evaluation import PROG, EvaluateConfig, run
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        run,
        EvaluateConfig,
        prog=PROG,
        description="Evaluate a run on its test split, with every baseline.",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
