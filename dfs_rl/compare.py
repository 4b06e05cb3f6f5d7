"""``python -m dfs_rl.compare``: train kinds of gates, or take finished ones, put them side by side and say which one to ship."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dfs_rl.backbone_choice import preview_backbone
from dfs_rl.cli import Invocation, run_command
from dfs_rl.config import config_to_dict, dump_yaml, flat_settings, read_yaml
from dfs_rl.contest import COMMANDS, GateName, Terms, given_settings, hold, plan_jobs
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.evaluation.curves import COMPUTATIONS
from dfs_rl.evaluation.limits import SearchLimits
from dfs_rl.files import exclusive, write_bytes_atomic
from dfs_rl.gate_runs import TRAINING, choice_of
from dfs_rl.messages import say
from dfs_rl.runs import RunFolder, read_json, write_json

if TYPE_CHECKING:
    from dfs_rl.data import Dataset
    from dfs_rl.evaluation.comparison_records import ComparisonOfRuns, EvaluatedRun
    from dfs_rl.evaluation.memory import Memory
    from dfs_rl.gating.dial import Dial
    from dfs_rl.reporting.html_report import GateSection

KIND = "compare"
PROG = "python -m dfs_rl.compare"
GATES_FOLDER = "gates"
_GIVEN = "{}.yaml"
"""Where a comparison keeps the further settings of a command's gates."""
_OF_TRAINING = ("backbone", "weights", "gates", "seeds", "timesteps", "agent", "gumbel")
"""Settings that finished runs have no use for."""
_SHOWN = {"options": "Bits at each layer", "images": "Cheapest and dearest images"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare.

    Attributes:
        runs: Folders of finished runs of commands that train gates; those that differ in nothing but the seed, and in where they
            ran, are one gate. Without any, the gates are trained.
        dataset: What to train gates on; with runs, where their data set is now, if it moved.
        backbone: What to train gates for: run of train_backbone or train_exits, or a backbone's folder, or module:function that makes a
            network of yours.
        weights: Safetensors file or state dict for the network that module:function makes.
        budgets: What images may cost on average, in percent. Gates for all budgets are turned to each; the others are trained for
            each. By default 0.5, 0.75, 1, 1.5 and 3 where gates are trained, and finished ones stay where they are.
        gates: Kinds of gates to train. The budget of maskable-ppo bounds every single image, that of the others the mean.
        seeds: Trainings of each.
        timesteps: Decisions that a gate learns from for each budget; one for all budgets learns from as many as the others together.
        agent: YAML file with further settings of train_agent, for all gates that it trains.
        gumbel: The same of train_gumbel.
        split: Split to report on; what to ship is chosen on val in either case.
        run_dir: New folder for the report and the trained gates; default runs/DATE-TIME-compare.
        device: Where to compute: "auto", "cpu", "cuda", ...
        threads: CPU threads.
        search: How long to search for each gate's best static table.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    dataset: str | None = None
    backbone: Path | None = None
    weights: Path | None = None
    budgets: tuple[float, ...] = ()
    gates: tuple[GateName, ...] = ("ppo", "gumbel-ff", "gumbel-lstm", "dfs-ff", "dfs-lstm")
    seeds: int = 3
    timesteps: int = 600_000
    agent: Path | None = None
    gumbel: Path | None = None
    split: Literal["test", "val"] = "test"
    run_dir: Path | None = None
    device: str = "auto"
    threads: int = 1
    search: SearchLimits = field(default_factory=SearchLimits)

    def __post_init__(self) -> None:
        asked = [
            name for name in _OF_TRAINING if getattr(self, name) != getattr(type(self), name, None)
        ]
        if not self.runs and self.dataset is None:
            raise ConfigError(
                f"no data set is given, and {asked[0]} is for gates that are trained; name with --dataset what to train them on."
                if asked
                else "no run is given; name the folders of runs to compare, or with --dataset what to train gates on."
            )
        if self.runs and asked:
            raise ConfigError(
                f"{asked[0]} is {getattr(self, asked[0])}, which is for gates that are trained, but {self.runs[0]} is a finished run; "
                "leave out one or the other."
            )
        if not self.gates:
            raise ConfigError("gates is empty; name at least one.")
        _check_once("runs", [run.resolve() for run in self.runs])
        _check_once("budgets", self.budgets)
        _check_once("gates", self.gates)
        for budget in self.budgets:
            if not 0 < budget < math.inf:
                raise ConfigError(f"budgets has {budget:g} %; it must be positive and finite.")
        for name in ("seeds", "timesteps", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed is 1 or more.")


def _check_once(name: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{name} has {value} more than once; each counts once.")


def _opened(path: Path) -> RunFolder:
    """Open a run that trained a gate."""
    folder = RunFolder.open(path)
    if folder.kind not in COMMANDS:
        raise DataError(f"{path} is a run of kind {folder.kind} and has no gate to compare.")
    return folder


def _terms(config: CompareConfig, given: Mapping[str, Mapping[str, object]]) -> Terms:
    """Return what all gates of a contest have in common."""
    assert config.dataset is not None
    return Terms(
        dataset=config.dataset,
        backbone=config.backbone,
        weights=config.weights,
        budgets=config.budgets or COMPUTATIONS,
        seeds=config.seeds,
        timesteps=config.timesteps,
        device=config.device,
        threads=config.threads,
        given=given,
    )


def _begin(config: CompareConfig, dataset: "Dataset", command: tuple[str, ...]) -> RunFolder:
    """Make the folder of a contest, unless its settings will not do; further settings of the gates are kept in it."""
    files = {"train_agent": config.agent, "train_gumbel": config.gumbel}
    given = {kind: given_settings(path, COMMANDS[kind]) for kind, path in files.items()}
    (job, *_) = plan_jobs(config.gates, _terms(config, given), Path(GATES_FOLDER))
    # Each gate tells for itself whether it leaves exits out.
    preview_backbone(replace(choice_of(job.config, config.device), exits=True), dataset)
    folder = RunFolder.create(
        config.run_dir, kind=KIND, name="compare", config=config, command=command
    )
    for kind, path in files.items():
        if path is not None:
            text = dump_yaml(read_yaml(path))
            write_bytes_atomic(folder.path / _GIVEN.format(kind), text.encode())
    return folder


def _trained(
    config: CompareConfig, folder: RunFolder, dataset: "Dataset"
) -> tuple[list[RunFolder], dict[str, str]]:
    """Train the gates of a contest, or go on with them; returns their folders, and those that failed with their reasons."""
    given = {}
    for kind, command in COMMANDS.items():
        kept = folder.path / _GIVEN.format(kind)
        given[kind] = given_settings(kept if kept.is_file() else None, command)
    jobs = plan_jobs(config.gates, _terms(config, given), folder.path / GATES_FOLDER)
    failed = hold(jobs, dataset)
    return [RunFolder.open(job.config.run_dir) for job in jobs if job.name not in failed], failed


def _evaluated(
    folder: RunFolder, dataset: "Dataset | str | None", config: CompareConfig, memory: "Memory"
) -> "tuple[list[EvaluatedRun], dict[str, str]]":
    """Evaluate a run at every budget that it can be turned to, or take what its evaluations stored.

    Returns:
        What was found, and what failed with its reasons.
    """
    from dfs_rl.gating.model import GATE_FOLDER
    from dfs_rl.gating.storage import load_gate

    say(f"{folder.path} ...")
    found: list[EvaluatedRun] = []
    if not (folder.path / TRAINING).is_file():
        again = f"{COMMANDS[folder.kind].prog} --resume {folder.path}"
        return found, {str(folder.path): f"its training is not finished; go on with {again}."}
    wanted = config.budgets or (() if config.runs else COMPUTATIONS)
    try:
        dial = load_gate(folder.path / GATE_FOLDER).dial
        found += [
            _evaluated_at(folder, dataset, budget, dial, config, memory)
            for budget in (wanted if dial is not None and wanted else (None,))
        ]
    # One gate that cannot be read or evaluated must not lose the others.
    except (CheckpointError, ConfigError) as error:
        say(f"  failed: {error}")
        return [], {str(folder.path): str(error)}
    return found, {}


def _evaluated_at(
    folder: RunFolder,
    dataset: "Dataset | str | None",
    budget: float | None,
    dial: "Dial | None",
    config: CompareConfig,
    memory: "Memory",
) -> "EvaluatedRun":
    from dfs_rl.evaluate import evaluate_run, picture_prefix
    from dfs_rl.evaluation.comparison_records import EvaluatedRun
    from dfs_rl.evaluation.outcomes import load_outcomes

    turned = budget
    if budget is not None and dial is not None:
        say(f"  at {budget:g} %")
        # A gate that cannot go as low is told of where it is; rounded up, so that the figure says the same when it is typed.
        turned = max(budget, math.ceil(1e4 * dial.reach[0]) / 1e4)
    with exclusive(folder.path):
        evaluation = evaluate_run(
            folder,
            dataset=dataset,
            split=config.split,
            budget=turned,
            device=config.device,
            search=config.search,
            progress=lambda text: say(f"  {text}"),
            memory=memory,
        )
    settings = flat_settings(read_yaml(folder.config_path))
    if budget is not None:
        settings |= {"budget": budget, "cost_weight": None}
    after = (
        evaluation.summary.exits_after
    )  # whatever a run was asked, it tells where its images may leave
    settings["exits"] = f"after {' '.join(map(str, after))}" if after else "none"
    recorded = folder.record().get("command")
    command = [str(word) for word in recorded] if isinstance(recorded, list) else []
    training = read_json(folder.path / TRAINING)
    assert isinstance(training, dict)
    return EvaluatedRun(
        path=str(folder.path),
        settings=settings,
        command=shlex.join(command),
        evaluation=_evaluation_command(folder, turned),
        backbone=_backbone_digest(folder),
        pictures=picture_prefix(config.split, turned),
        images_seen=sum(training["images_seen"].values()),
        seconds=training.get("seconds"),
        summary=evaluation.summary,
        outcomes=load_outcomes(evaluation.outcomes),
    )


def _evaluation_command(folder: RunFolder, budget: float | None) -> str:
    """Return the command that shows a run's figures."""
    words = ["python", "-m", "dfs_rl.evaluate", str(folder.path)]
    return shlex.join([*words, *([] if budget is None else ["--budget", f"{budget:g}"])])


def _backbone_digest(folder: RunFolder) -> str:
    """Return a digest of the backbone that the run's gate was given."""
    from dfs_rl.backbones.storage import weights_digest
    from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER

    before = folder.path / BEFORE_FOLDER
    return weights_digest(before if before.is_dir() else folder.path / BACKBONE_FOLDER)


def _sections(
    comparison: "ComparisonOfRuns", runs: Sequence["EvaluatedRun"]
) -> list["GateSection"]:
    """Gather each gate's pictures, commands and settings."""
    from dfs_rl.evaluation.comparison_records import GATE
    from dfs_rl.reporting.html_report import GateSection

    prefixes = {(run.path, run.settings.get("budget")): run.pictures for run in runs}
    commands = {
        (run.path, run.settings.get("budget")): (run.command, run.evaluation) for run in runs
    }
    sections = []
    for point in comparison.points:
        if point.kind != GATE:
            continue
        folder = RunFolder.open(Path(point.runs[0]))
        prefix = prefixes[point.runs[0], point.budget]
        files = {what: folder.plots_dir / f"{prefix}{name}.png" for name, what in _SHOWN.items()}
        sections.append(
            GateSection(
                label=point.label,
                pictures={w: file.read_bytes() for w, file in files.items() if file.is_file()},
                commands=[line for path in point.runs for line in commands[path, point.budget]],
                settings=folder.config_path.read_text(encoding="utf-8"),
            )
        )
    return sections


def _compared(
    folders: Sequence[RunFolder],
    failed: Mapping[str, str],
    dataset: "Dataset | str | None",
    config: CompareConfig,
) -> "tuple[ComparisonOfRuns, list[EvaluatedRun]]":
    """Evaluate runs and put them side by side.

    Raises:
        CheckpointError: If none can be evaluated.
    """
    from dfs_rl.evaluation.comparison import check_comparable, compare_runs
    from dfs_rl.evaluation.memory import Memory

    runs: list[EvaluatedRun] = []
    memory = Memory()  # the search for static tables is most of an evaluation's time
    all_failed = dict(failed)
    for folder in folders:
        found, reasons = _evaluated(folder, dataset, config, memory)
        runs += found
        all_failed |= reasons
        check_comparable(runs)
    if not runs:
        path, reason = next(iter(all_failed.items()))
        raise CheckpointError(f"none of the runs can be evaluated; {path}: {reason}")
    return compare_runs(runs, all_failed), runs


def _write(
    folder: RunFolder, comparison: "ComparisonOfRuns", runs: "Sequence[EvaluatedRun]"
) -> None:
    """Write the report into a folder, and the table to the screen."""
    from dfs_rl.reporting.comparison_pictures import comparison_pictures
    from dfs_rl.reporting.comparison_text import comparison_csv, comparison_text
    from dfs_rl.reporting.html_report import html_report

    pictures = comparison_pictures(comparison)
    page = html_report(comparison, pictures, _sections(comparison, runs))
    write_bytes_atomic(folder.path / "frontier.png", pictures.frontier)
    write_bytes_atomic(folder.path / "spending.png", pictures.spending)
    for stale in folder.path.glob("options-*.png"):
        stale.unlink()
    for number, png in enumerate(pictures.mixes.values(), start=1):
        write_bytes_atomic(folder.path / f"options-{number}.png", png)
    write_bytes_atomic(folder.path / "points.csv", comparison_csv(comparison).encode())
    write_json(folder.path / "comparison.json", config_to_dict(comparison))
    write_bytes_atomic(folder.path / "report.html", page.encode())
    sys.stdout.write(comparison_text(comparison))
    sys.stdout.flush()
    say(f"The report is {folder.path / 'report.html'}.")


def _run(invocation: Invocation[CompareConfig]) -> None:
    import torch

    from dfs_rl.data import load_dataset
    from dfs_rl.devices import resolve_device

    config = invocation.config
    torch.set_num_threads(config.threads)
    resolve_device(config.device)
    folder = invocation.resume

    if config.runs:
        comparison, runs = _compared(
            [_opened(path) for path in config.runs], {}, config.dataset, config
        )
        folder = folder or RunFolder.create(
            config.run_dir, kind=KIND, name="compare", config=config, command=invocation.command
        )
        _write(folder, comparison, runs)
        return
    assert config.dataset is not None
    dataset = load_dataset(config.dataset)
    folder = folder or _begin(config, dataset, invocation.command)
    try:
        folders, failed = _trained(config, folder, dataset)
        comparison, runs = _compared(folders, failed, dataset, config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Interrupted and saved; go on with: {PROG} --resume {folder.path}"
        ) from None
    _write(folder, comparison, runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        _run,
        CompareConfig,
        prog=PROG,
        description="Train several kinds of gates, or take finished ones, put them side by side with what could be shipped instead, and "
        "say which one to ship.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
