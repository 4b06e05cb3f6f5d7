"""Command ``sweep``: tune settings of a training, and retrain the best on new seeds."""

import sys
from collections.abc import Sequence

from dfs_rl.sweeping.config import KIND, PROG, SweepConfig
from dfs_rl.utils.cli import Invocation, run_command


def sweep(invocation: Invocation[SweepConfig]) -> None:
    """Run or resume a sweep."""
    from dfs_rl.sweeping.command import run  # imports torch, slow for a help page

    run(invocation)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        sweep,
        SweepConfig,
        prog=PROG,
        description="Search settings of train_agent, train_gumbel, train_static or train_backbone, reward weights above all, by the rules "
        "of a file; train the best again on fresh seeds and say which one to ship.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
