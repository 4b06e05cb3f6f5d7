"""Command ``train_backbone``: train a supernet of fixed or adaptive depth."""

import sys
from collections.abc import Sequence

from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.supernet_training import KIND, PROG, train
from dfs_rl.utils.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
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
