"""Command ``evaluate``: evaluate a run on its test split, with every baseline."""

import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

import tyro

from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.utils.cli import Invocation, run_command
from dfs_rl.utils.config import PositiveFloat, PositiveInt, configuration
from dfs_rl.utils.logging import print_status


@configuration
class EvaluateConfig:
    """Settings of ``evaluate``.

    Attributes:
        run: Folder of a run that trained a gate, or of train_backbone or train_exits for its
            uniform options alone.
        split: Split to report on; test is for one final evaluation.
        budget: Budget on the mean computation in percent that a gate for all budgets is set to.
        dataset: New location of the run's data set, if it moved; the images must be the same.
        device: "auto", "cpu", "cuda", ...
        batch_size: Images per batch.
        threads: Number of CPU threads.
        precision: Number format of the backbone; float32 for figures to report, "auto" selects
            bfloat16 where the hardware is fast at it.
        search: Limits of the search for the best static bit table.
    """

    run: tyro.conf.Positional[Path]
    split: Literal["test", "val"] = "test"
    budget: PositiveFloat | None = None
    dataset: str | None = None
    device: str = "auto"
    batch_size: PositiveInt = 128
    threads: PositiveInt = 1
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    search: SearchConfig = field(default_factory=SearchConfig)


def run(invocation: Invocation[EvaluateConfig]) -> None:
    """Evaluate a run, print its table and write its summary."""
    from dfs_rl.experiments.evaluation import evaluate_run
    from dfs_rl.reporting.tables import summary_text
    from dfs_rl.utils.device import set_threads

    config = invocation.config
    set_threads(config.threads)
    result = evaluate_run(
        config.run,
        dataset=config.dataset,
        split=config.split,
        budget=config.budget,
        device=config.device,
        batch_size=config.batch_size,
        precision=config.precision,
        search=config.search,
        progress=lambda text: print_status(f"{text} ..."),
    )
    sys.stdout.write(summary_text(result.summary))
    sys.stdout.flush()
    if result.stored:
        print_status(f"Stored in {result.path}: neither the run nor the settings have changed.")
    else:
        print_status(f"Written to {result.path} and {config.run / 'plots'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        run,
        EvaluateConfig,
        prog="python -m dfs_rl.evaluate",
        description="Evaluate a run on its test split, with every baseline.",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
