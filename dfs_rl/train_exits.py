"""Command ``train_exits``: add exits to a trained backbone."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.exit_training import KIND, PROG, TrainExitsConfig, train
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        train,
        TrainExitsConfig,
        prog=PROG,
        description="Give a trained backbone exits: classifiers on the way, by whose answer an image may leave it. The result is a "
        "backbone of its own.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
