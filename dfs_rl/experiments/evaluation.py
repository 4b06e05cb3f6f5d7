"""Command: evaluate a run on its test split, with every baseline that its gate should beat.

It prints a table, and writes ``summary.json`` and pictures into the run folder. The test split is
for one look: a run that was evaluated and has not changed since is not evaluated again; its stored
table is printed. ``--split val`` writes ``summary-val.json``; a backbone's run gets
``summary-test.json``.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

import tyro

from dfs_rl.errors import ConfigError, DataError, RunFolderError
from dfs_rl.evaluation.static_tables.config import SearchConfig
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import (
    PositiveFloat,
    PositiveInt,
    config_from_dict,
    config_to_dict,
    configuration,
    read_yaml,
)
from dfs_rl.utils.io import read_json, write_json
from dfs_rl.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from dfs_rl.backbones import BackboneInfo, WalkableBackbone
    from dfs_rl.data import Dataset
    from dfs_rl.evaluation.baselines.methods import MethodResult
    from dfs_rl.evaluation.cache import EvaluationCache
    from dfs_rl.evaluation.summary import EvaluationSummary, Subject
    from dfs_rl.gating.model import GatedModel
    from dfs_rl.reporting.images_plot import ImageExample

PROG = "python -m dfs_rl.evaluate"

ReportedSplit = Literal["test", "val"]
Precision = Literal["auto", "float32", "bfloat16"]
_SELECTION: ReportedSplit = "val"
_TABLE_BYTES = 1000
"""What a table takes with its score."""
_BACKBONE_KINDS = ("train_backbone", "train_exits")


@configuration
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run: Folder of a run that trained a gate, or of train_backbone or train_exits for its
            uniform options alone.
        split: Split to report on; test is for one look at the end.
        budget: Turn a gate for all budgets to what images may cost on average, in percent.
        dataset: Where the run's data set is now, if it moved; it must hold the same images.
        device: "auto", "cpu", "cuda", ...
        batch_size: Images that run together.
        threads: CPU threads.
        precision: What the backbone computes in; float32 for figures to report, "auto" takes
            bfloat16 where the hardware is fast at it.
        search: How long to search for the best static table.
    """

    run: tyro.conf.Positional[Path]
    split: ReportedSplit = "test"
    budget: PositiveFloat | None = None
    dataset: str | None = None
    device: str = "auto"
    batch_size: PositiveInt = 128
    threads: PositiveInt = 1
    precision: Precision = "float32"
    search: SearchConfig = field(default_factory=SearchConfig)


class Evaluation(NamedTuple):
    """What came of an evaluation.

    Attributes:
        summary: The figures.
        path: The file that holds them.
        results_path: The file that holds what every method did with every image.
        stored: Whether they had been stored before and nothing was run.
    """

    summary: "EvaluationSummary"
    path: Path
    results_path: Path
    stored: bool


class _Loaded(NamedTuple):
    """What a run trained; ``model`` is None for a backbone alone, ``before`` is what a co-trained backbone was."""

    backbone: "WalkableBackbone"
    model: "GatedModel | None"
    info: "BackboneInfo"
    before: "WalkableBackbone | None"


class _Plan(NamedTuple):
    split: ReportedSplit
    batch_size: int
    search: SearchConfig
    cache: "EvaluationCache"
    cache_key: str


def evaluate_run(  # noqa: PLR0913 - each is one choice of the caller's
    run: RunFolder | Path,
    *,
    dataset: "Dataset | str | None" = None,
    split: ReportedSplit = "test",
    budget: float | None = None,
    device: str = "auto",
    batch_size: int = 128,
    precision: Precision = "float32",
    search: SearchConfig | None = None,
    progress: Callable[[str], None] = lambda _: None,
    cache: "EvaluationCache | None" = None,
    store: Callable[[], AbstractContextManager[Path]] | None = None,
) -> Evaluation:
    """Evaluate a run and store ``summary.json`` and ``plots/`` in it, or where ``store`` says.

    The file is ``summary-val.json`` for the val split, ``summary-test.json`` for a backbone's run,
    and ``summary-at-0.8.json`` where a gate for all budgets is turned to 0.8 %.

    Nothing is run if the stored figures belong to the same weights, images, precision and search
    limits; if they do not, they are replaced.

    Args:
        run: The run; a backbone's run gets its uniform options alone.
        dataset: Its data set, or where that is; None reads it from the run's configuration.
        split: Split to report on; choices are always made on val.
        budget: Turn a gate for all budgets to what images may cost on average, in percent; None
            leaves it where it is.
        device: Where to compute, as in ``EvaluateConfig``.
        batch_size: Images that run together.
        precision: What the backbone computes in, as in ``EvaluateConfig``.
        search: How long to search for the best static table; None for the defaults.
        progress: Told what is being done, in a few words.
        cache: What evaluations of other runs found; pass the same one to save what they have in
            common.
        store: Entered where the run holds no such figures, for the folder that gets them; by
            default the run's own. With another one nothing is written into the run.

    Raises:
        RunFolderError: If it is no run.
        CheckpointError: If the run has no usable backbone or gate.
        DataError: If the data set cannot be found or is not the one that the run was trained on.
        ConfigError: If the device is not there, or the gate cannot be turned to ``budget``.
    """
    from dfs_rl.backbones.storage import weights_digest
    from dfs_rl.evaluation.cache import EvaluationCache
    from dfs_rl.evaluation.per_image_results import per_image_results_of, save_per_image_results
    from dfs_rl.evaluation.summary import Subject, summarize
    from dfs_rl.gating.model import BACKBONE_FOLDER
    from dfs_rl.reporting.figures import write_figures

    folder = RunFolder.open(run) if isinstance(run, Path) else run
    search = search or SearchConfig()
    loaded = _load(folder, device, precision, budget)
    data = _dataset(folder, loaded.info, dataset)
    # A backbone's run has a summary of its training already.
    shown = [split] if split != "test" or loaded.model is None else []
    variant = "-".join([*shown, *([] if budget is None else [f"at-{budget:g}"])])
    name = f"summary-{variant}.json" if variant else "summary.json"
    subject = Subject(
        identity=_identity(folder.path, data.fingerprint, split, precision, search, budget),
        dataset=data.name,
        fingerprint=data.fingerprint,
        split=split,
        class_names=data.class_names,
    )
    found = _stored_evaluation(folder.path / name, subject.identity)
    if found is not None:
        return found
    with nullcontext(folder.path) if store is None else store() as output_folder:
        path = output_folder / name
        found = _stored_evaluation(path, subject.identity)
        if found is not None:
            return found
        if path.exists():
            progress(f"{path} belongs to other weights, images or settings and is replaced")
        _check_memory(loaded.backbone, data, split, batch_size, search)
        digest = weights_digest(folder.path / BACKBONE_FOLDER, exits=True)
        cache_key = f"{digest} {data.fingerprint} {precision} {batch_size}"
        plan = _Plan(split, batch_size, search, cache or EvaluationCache(), cache_key)
        methods, examples = _measure(loaded, data, subject, plan, progress)
        costs = loaded.backbone.costs
        summary = summarize(methods, costs, subject)
        # A summary must never stand beside the outcomes of another evaluation.
        path.unlink(missing_ok=True)
        save_per_image_results(_results_path(path), per_image_results_of(methods, costs))
        plots = output_folder / folder.plots_dir.name
        write_figures(plots, figure_prefix(split, budget), summary, examples)
        # Last: where there is a summary, there are its pictures.
        write_json(path, config_to_dict(summary))
        return Evaluation(summary, path, _results_path(path), stored=False)


def _results_path(path: Path) -> Path:
    return path.with_name(path.name.replace("summary", "outcomes")).with_suffix(".safetensors")


def _stored_evaluation(path: Path, identity: str) -> Evaluation | None:
    """Return the evaluation that is stored at a path, None if there is none with that identity."""
    known, results_path = _stored(path), _results_path(path)
    if known is None or known.identity != identity or not results_path.is_file():
        return None
    return Evaluation(known, path, results_path, stored=True)


def _check_memory(
    backbone: "WalkableBackbone",
    data: "Dataset",
    split: ReportedSplit,
    batch_size: int,
    search: SearchConfig,
) -> None:
    """Refuse settings that do not fit into memory, before anything is run."""
    from dfs_rl.backbones.footprint import forward_bytes
    from dfs_rl.utils.device import check_memory

    images = max(len(data.split(name)) for name in (split, _SELECTION))
    batch = min(batch_size, images)
    tables = min(search.tables, len(backbone.options) ** backbone.costs.n_layers)
    needs = {
        f"batch_size is {batch}": float(batch * forward_bytes(backbone)),
        f"search.tables is {search.tables}": float(tables * _TABLE_BYTES),
    }
    check_memory(needs, backbone.feature_mean.device)


def figure_prefix(split: ReportedSplit, budget: float | None) -> str:
    """Return what the names of an evaluation's pictures begin with."""
    return ("" if split == "test" else f"{split}-") + ("" if budget is None else f"at-{budget:g}-")


def _load(folder: RunFolder, device: str, precision: Precision, budget: float | None) -> _Loaded:
    """Load what the run trained, ready to run."""
    from dfs_rl.backbones import load_stored_backbone
    from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER, load
    from dfs_rl.utils.device import resolve_device
    from dfs_rl.utils.precision import resolve_frozen

    torch_device = resolve_device(device)
    dtype = resolve_frozen(precision, torch_device)
    stored = load_stored_backbone(folder.path / BACKBONE_FOLDER)
    if folder.kind in _BACKBONE_KINDS:
        if budget is not None:
            raise ConfigError(
                f"budget is {budget:g} %, but {folder.path} is the run of a backbone and has no "
                "gate to turn."
            )
        return _Loaded(
            stored.backbone.to_inference(dtype).to(torch_device), None, stored.info, None
        )
    model = load(folder.path, device=torch_device, dtype=dtype, budget=budget)
    before = None
    if (folder.path / BEFORE_FOLDER).is_dir():
        before = load_stored_backbone(folder.path / BEFORE_FOLDER).backbone
    frozen = None if before is None else before.to_inference(dtype).to(torch_device)
    return _Loaded(model.backbone, model, stored.info, frozen)


def _dataset(folder: RunFolder, info: "BackboneInfo", dataset: "Dataset | str | None") -> "Dataset":
    """Load the data set and make sure that it is the run's."""
    from dfs_rl.data import load_dataset

    if dataset is None:
        spec = read_yaml(folder.config_path).get("dataset")
        if not isinstance(spec, str):
            raise RunFolderError(
                f"{folder.config_path} names no data set; give one with --dataset."
            )
        try:
            data = load_dataset(spec, image_size=info.image_size)
        except DataError as error:
            raise DataError(f"{error} If it moved, say where it is with --dataset.") from error
    else:
        data = (
            load_dataset(dataset, image_size=info.image_size)
            if isinstance(dataset, str)
            else dataset
        )
    if data.fingerprint != info.fingerprint:
        raise DataError(
            f"data set {data.name!r} (fingerprint {data.fingerprint}) is not the one that the "
            "backbone "
            f"of {folder.path} was trained on, {info.dataset!r} ({info.fingerprint}); its images, "
            "labels or splits differ."
        )
    return data


def _identity(
    folder: Path,
    fingerprint: str,
    split: str,
    precision: Precision,
    search: SearchConfig,
    budget: float | None,
) -> str:
    """Return a digest of everything that decides the figures."""
    from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER

    at = "" if budget is None else f" {budget}"
    digest = hashlib.sha256(f"{fingerprint} {split} {precision} {search}{at}".encode())
    for part in (BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER):
        for path in sorted((folder / part).glob("*")):
            if path.suffix in (".json", ".safetensors") and not path.name.startswith("."):
                digest.update(f" {part}/{path.name} {path.stat().st_size} ".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _stored(path: Path) -> "EvaluationSummary | None":
    """Return the stored summary, None if there is none of this format."""
    from dfs_rl.evaluation.summary import FORMAT, EvaluationSummary

    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            return None
        return config_from_dict(record, EvaluationSummary, str(path))
    except (ConfigError, RunFolderError):  # damaged, so there is nothing to keep
        return None


def _measure(
    loaded: _Loaded,
    data: "Dataset",
    subject: "Subject",
    plan: _Plan,
    progress: Callable[[str], None],
) -> "tuple[list[MethodResult], tuple[list[ImageExample], list[ImageExample]] | None]":
    """Run the gate, if there is one, and everything it is compared with."""
    from dfs_rl.evaluation.baselines.methods import (
        EvaluationSetup,
        MethodResult,
        matched_cost_baselines,
        oracle_baseline,
        uniform_baselines,
    )
    from dfs_rl.evaluation.budget_conditioning import gate_text
    from dfs_rl.evaluation.evaluator import evaluate_gate
    from dfs_rl.reporting.figures import cheapest_and_dearest

    backbone, model = loaded.backbone, loaded.model
    torch_device = backbone.feature_mean.device
    reported, selection = (
        data.split(plan.split).to(torch_device),
        data.split(_SELECTION).to(torch_device),
    )
    size = plan.batch_size
    progress(f"every uniform option on {len(reported):,} {plan.split} images")
    cache, cache_key = plan.cache, plan.cache_key
    uniform = cache.uniform(
        f"{cache_key} {plan.split}",
        lambda: uniform_baselines(backbone, reported, selection=selection, batch_size=size),
    )
    if model is None:
        return uniform, None
    progress("the gate")
    records, on_selection = (
        evaluate_gate(backbone, model.gate, images, batch_size=size, budget=model.budget)
        for images in (reported, selection)
    )
    evaluation_setup = EvaluationSetup(
        reported=reported,
        selection=selection,
        reported_name=plan.split,
        selection_name=_SELECTION,
        search=plan.search,
        batch_size=size,
        progress=progress,
        cached_scores=lambda images: cache.scores(f"{cache_key} {images}"),
    )
    baselines = matched_cost_baselines(
        backbone,
        evaluation_setup,
        gate=records,
        gate_selection=on_selection,
        uniform=uniform,
        before_cotraining=loaded.before,
    )
    gate = MethodResult(
        key="gate",
        label=records.name,
        role="gate",
        records=(records,),
        selection=on_selection,
        detail=gate_text(model.gate),
    )
    examples = cheapest_and_dearest(records, reported.images, backbone.costs, subject.class_names)
    return [gate, *uniform, *baselines, oracle_baseline(uniform)], examples


def run(invocation: Invocation[EvaluateConfig]) -> None:
    """Evaluate a run, print its table and write its summary."""
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
        progress=lambda text: _write(sys.stderr, f"{text} ...\n"),
    )
    _write(sys.stdout, summary_text(result.summary))
    if result.stored:
        _write(
            sys.stderr, f"Stored in {result.path}: neither the run nor the settings have changed.\n"
        )
    else:
        _write(sys.stderr, f"Written to {result.path} and {config.run / 'plots'}.\n")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()
