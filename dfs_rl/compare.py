"""``python -m dfs_rl.compare RUN RUN ...``: put finished gates side by side and say which one to ship."""

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dfs_rl.cli import Invocation, run_command
from dfs_rl.config import config_to_dict, read_yaml
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.evaluation.limits import SearchLimits
from dfs_rl.files import exclusive, write_bytes_atomic
from dfs_rl.gate_runs import GATE_KINDS, TRAINING, say
from dfs_rl.runs import RunFolder, write_json

if TYPE_CHECKING:
    from dfs_rl.evaluation.comparison_records import ComparisonOfRuns, EvaluatedRun
    from dfs_rl.reporting.html_report import GateSection

KIND = "compare"
PROG = "python -m dfs_rl.compare"
_SHOWN = {"options": "Bits at each layer", "images": "Cheapest and dearest images"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare.

    Attributes:
        runs: Folders of finished train_agent, train_gumbel or train_static runs; those that differ in nothing but the seed, and in
            where they ran, are one gate.
        split: Split to report on; what to ship is chosen on val in either case.
        dataset: Where the runs' data set is now, if it moved.
        run_dir: New folder for the report; default runs/DATE-TIME-compare.
        device: Where to evaluate runs that were not yet: "auto", "cpu", "cuda", ...
        threads: CPU threads.
        search: How long to search for each run's best static table.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    split: Literal["test", "val"] = "test"
    dataset: str | None = None
    run_dir: Path | None = None
    device: str = "auto"
    threads: int = 1
    search: SearchLimits = field(default_factory=SearchLimits)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run is given; name the folders of the runs to compare.")
        resolved = [run.resolve() for run in self.runs]
        twice = [str(run) for run in self.runs if resolved.count(run.resolve()) > 1]
        if twice:
            raise ConfigError(f"{twice[0]} is given more than once; each run counts once.")
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; allowed is 1 or more.")


def _opened(path: Path) -> RunFolder:
    """Open a run that trained a gate."""
    folder = RunFolder.open(path)
    if folder.kind not in GATE_KINDS:
        raise DataError(f"{path} is a run of kind {folder.kind} and has no gate to compare.")
    return folder


def _evaluated(folder: RunFolder, config: CompareConfig) -> "EvaluatedRun":
    """Evaluate a run, or take what its evaluation stored."""
    from dfs_rl.evaluate import evaluate_run
    from dfs_rl.evaluation.comparison_records import EvaluatedRun
    from dfs_rl.evaluation.outcomes import load_outcomes

    say(f"{folder.path} ...")
    if not (folder.path / TRAINING).is_file():
        raise CheckpointError(
            f"its training is not finished; go on with python -m dfs_rl.{folder.kind} --resume {folder.path}."
        )
    with exclusive(folder.path):
        evaluation = evaluate_run(
            folder,
            dataset=config.dataset,
            split=config.split,
            device=config.device,
            search=config.search,
            progress=lambda text: say(f"  {text}"),
        )
    command = folder.record().get("command")
    return EvaluatedRun(
        path=str(folder.path),
        settings=_flat(read_yaml(folder.config_path)),
        command=[str(word) for word in command] if isinstance(command, list) else [],
        backbone=_backbone_digest(folder),
        summary=evaluation.summary,
        outcomes=load_outcomes(evaluation.outcomes),
    )


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested settings by their dotted names."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _backbone_digest(folder: RunFolder) -> str:
    """Return a digest of the backbone that the run's gate was given."""
    from dfs_rl.backbones.storage import WEIGHTS_FILE
    from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER

    before = folder.path / BEFORE_FOLDER
    place = before if before.is_dir() else folder.path / BACKBONE_FOLDER
    return hashlib.sha256((place / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def _sections(
    comparison: "ComparisonOfRuns", runs: Sequence["EvaluatedRun"]
) -> list["GateSection"]:
    """Gather each gate's pictures, commands and settings."""
    from dfs_rl.evaluation.comparison_records import GATE
    from dfs_rl.reporting.html_report import GateSection

    by_path = {run.path: run for run in runs}
    prefix = "" if comparison.split == "test" else f"{comparison.split}-"
    sections = []
    for point in comparison.points:
        if point.kind != GATE:
            continue
        folder = RunFolder.open(Path(point.runs[0]))
        files = {what: folder.plots_dir / f"{prefix}{name}.png" for name, what in _SHOWN.items()}
        sections.append(
            GateSection(
                label=point.label,
                pictures={w: file.read_bytes() for w, file in files.items() if file.is_file()},
                commands=[shlex.join(by_path[path].command) for path in point.runs],
                settings=folder.config_path.read_text(encoding="utf-8"),
            )
        )
    return sections


def _run(invocation: Invocation[CompareConfig]) -> None:
    import torch

    from dfs_rl.evaluation.comparison import check_comparable, compare_runs
    from dfs_rl.reporting import style
    from dfs_rl.reporting.comparison_text import comparison_csv, comparison_text
    from dfs_rl.reporting.frontier_plot import frontier_plot
    from dfs_rl.reporting.html_report import html_report

    config = invocation.config
    torch.set_num_threads(config.threads)
    runs, failed = [], {}
    for opened in [_opened(path) for path in config.runs]:
        try:
            runs.append(_evaluated(opened, config))
        except CheckpointError as error:  # one gate that cannot be read must not lose the others
            failed[str(opened.path)] = str(error)
            say(f"  failed: {error}")
        check_comparable(runs)
    if not runs:
        path, reason = next(iter(failed.items()))
        raise CheckpointError(f"none of the runs can be evaluated; {path}: {reason}")
    comparison = compare_runs(runs, failed)
    folder = RunFolder.create(
        config.run_dir, kind=KIND, name="compare", config=config, command=invocation.command
    )
    picture = style.to_png(frontier_plot(comparison))
    page = html_report(comparison, picture, _sections(comparison, runs))
    write_bytes_atomic(folder.path / "frontier.png", picture)
    write_bytes_atomic(folder.path / "points.csv", comparison_csv(comparison).encode())
    write_json(folder.path / "comparison.json", config_to_dict(comparison))
    write_bytes_atomic(folder.path / "report.html", page.encode())
    sys.stdout.write(comparison_text(comparison))
    sys.stdout.flush()
    say(f"The report is {folder.path / 'report.html'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        _run,
        CompareConfig,
        prog=PROG,
        description="Put finished gates side by side, with what could be shipped instead, and say which one to ship.",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
