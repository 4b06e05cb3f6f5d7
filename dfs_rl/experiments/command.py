"""Commands that train gates, without the code that trains, so that help pages load quickly."""

import sys
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Generic, TypeVar

from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.logging import print_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfs_rl.data import Dataset
    from dfs_rl.experiments.session import TrainingResult
    from dfs_rl.utils.run_folder import RunFolder

SettingsT = TypeVar("SettingsT", bound=GateRunConfig)


@dataclass(frozen=True, kw_only=True)
class GateTrainingCommand(Generic[SettingsT]):
    """Command that trains gates.

    Attributes:
        kind: Name of the command, and kind of its run folders.
        description: One sentence for its help page.
        config_type: Configuration class.
        module: Name of the module with its functions ``validate`` and ``train``, imported at their
            first use to keep help pages quick.
        with_resolved_defaults: Function that fills in defaults that depend on other settings. A run
            stores the result, so that it resumes unchanged after a version changes the defaults.
    """

    kind: str
    description: str
    config_type: type[SettingsT]
    module: str
    with_resolved_defaults: "Callable[[SettingsT], SettingsT]" = lambda config: config

    @property
    def prog(self) -> str:
        """Command line prefix that runs the command."""
        return f"python -m dfs_rl.{self.kind}"

    @property
    def validate(self) -> "Callable[[SettingsT, Dataset, str], str]":
        """Function of config, data set and device: validates them and returns the run's name."""
        function: Callable[[SettingsT, Dataset, str], str] = resolve_name(f"{self.module}:validate")
        return function

    @property
    def train(self) -> "Callable[[SettingsT, Dataset, RunFolder, str], TrainingResult]":
        """Function of config, data set, run and device: trains a gate or resumes its training."""
        function: Callable[..., TrainingResult] = resolve_name(f"{self.module}:train")
        return function

    def run(self, invocation: Invocation[SettingsT]) -> None:
        """Train a gate, unless the run is finished, evaluate it and print the results."""
        from dfs_rl.experiments.backbone_resolver import load_data
        from dfs_rl.experiments.evaluation import evaluate_run
        from dfs_rl.experiments.gate_run import create_run, train_run
        from dfs_rl.reporting.tables import summary_text
        from dfs_rl.utils.device import resolve_device, set_threads

        config, resume = invocation.config, invocation.resume
        set_threads(config.threads, resumed=resume is not None)
        device = str(resolve_device(config.device))
        dataset = load_data(config, resume)
        run = resume or create_run(self, config, dataset, device=device, argv=invocation.command)
        with run.lock():
            train_run(self, config, dataset, run, device=device)
            evaluation = evaluate_run(
                run,
                dataset=dataset,
                device=device,
                progress=lambda text: print_status(f"Evaluating: {text} ..."),
            )
        sys.stdout.write(summary_text(evaluation.summary))
        sys.stdout.flush()
        print_status(f"Everything is in {run.path}; pictures:")
        for picture in sorted(run.plots_dir.glob("*.png")):
            print_status(f"  {picture}")
