"""Command: train a supernet, a backbone in which every mix of bit options works, of fixed or of adaptive depth."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.supernet_training import KIND, PROG, train
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags and train; returns the exit code."""
    return run_command(
        train,
        TrainBackboneConfig,
        prog=PROG,
        description="Train a supernet: one network in which every layer works at every bit option.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
