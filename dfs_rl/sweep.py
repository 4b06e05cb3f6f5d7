"""Command ``sweep``: search settings of a training, and retrain the best on fresh seeds."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.command import COMMANDS
from dfs_rl.sweeping.config import DESCRIPTION, KIND, PROG, SweepConfig
from dfs_rl.utils.cli import Invocation, run_command
from dfs_rl.utils.ray import restrict_ray_to_localhost


def sweep(invocation: Invocation[SweepConfig]) -> None:
    """Run or resume a sweep."""
    if invocation.config.address is None:
        restrict_ray_to_localhost()  # before the import below, which imports Ray

    from dfs_rl.sweeping.sweep import run  # imports torch, slow for a help page

    run(invocation)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        sweep,
        SweepConfig,
        prog=PROG,
        description=DESCRIPTION,
        kind=KIND,
        argv=argv,
        commands=COMMANDS,
    )


if __name__ == "__main__":
    sys.exit(main())
