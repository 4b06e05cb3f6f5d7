"""Command ``compare``: train gates or take finished runs, compare and recommend one."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.comparison import KIND, PROG, run
from dfs_rl.experiments.comparison_config import CompareConfig
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        run,
        CompareConfig,
        prog=PROG,
        description="Train several kinds of gates, or take finished ones, put them side by side with what could be shipped instead, and "
        "say which one to ship.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
