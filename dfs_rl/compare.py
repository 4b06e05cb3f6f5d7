"""Command ``compare``: train gates or take finished runs, compare and recommend one."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.comparison_config import KIND, PROG, CompareConfig
from dfs_rl.utils.cli import Invocation, run_command
from dfs_rl.utils.logging import print_status


def run(invocation: Invocation[CompareConfig]) -> None:
    """Compare newly trained gates, or the given runs, and print the tables."""
    from dfs_rl.experiments.comparison import compare
    from dfs_rl.reporting.comparison_report import comparison_text
    from dfs_rl.utils.device import set_threads

    set_threads(invocation.config.threads, resumed=invocation.resume is not None)
    folder, comparison = compare(
        invocation.config, resume=invocation.resume, command=invocation.command
    )
    sys.stdout.write(comparison_text(comparison))
    sys.stdout.flush()
    print_status(f"The report is {folder.path / 'report.html'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        run,
        CompareConfig,
        prog=PROG,
        description="Compare gates of several kinds, newly trained or from finished runs, with "
        "each other and with their baselines, and recommend one.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
