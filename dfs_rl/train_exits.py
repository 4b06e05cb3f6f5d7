"""Command ``train_exits``: add exits to a trained backbone."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.exit_training import TrainExitsConfig
from dfs_rl.utils.cli import Invocation, run_command


def run(invocation: Invocation[TrainExitsConfig]) -> None:
    """Fit exits, unless the run is finished, and print their accuracy."""
    from dfs_rl.experiments.exit_fitting import train

    train(invocation)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        run,
        TrainExitsConfig,
        prog="python -m dfs_rl.train_exits",
        description="Fit exits to a trained backbone: classifiers behind gated layers, where an "
        "image may leave the network. The result is a backbone of its own.",
        kind="train_exits",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
