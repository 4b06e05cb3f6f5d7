"""Evaluation of a run on its test split, with every baseline that its gate should beat.

It prints a table, and writes ``summary.json`` and figures into the run folder. The test split is
evaluated once: for an unchanged run the stored table is printed. ``--split val`` writes
``summary-val.json``; a backbone's run gets ``summary-test.json``.
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
"""Approximate size of a static bit table with its score in bytes."""
_BACKBONE_KINDS = ("train_backbone", "train_exits")


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
    split: ReportedSplit = "test"
    budget: PositiveFloat | None = None
    dataset: str | None = None
    device: str = "auto"
    batch_size: PositiveInt = 128
    threads: PositiveInt = 1
    precision: Precision = "float32"
    search: SearchConfig = field(default_factory=SearchConfig)


class Evaluation(NamedTuple):
    """Results of an evaluation.

    Attributes:
        summary: Summary of all methods.
        path: File of the summary.
        results_path: File with the per-image results of every method.
        stored: True if the results were read from an earlier evaluation.
    """

    summary: "EvaluationSummary"
    path: Path
    results_path: Path
    stored: bool


class _Loaded(NamedTuple):
    """Models of a run, ready for evaluation.

    ``model`` is ``None`` for a backbone's run; ``before`` is the backbone before co-training.
    """

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
    """Evaluate a run and store ``summary.json`` and ``plots/`` in it, or in ``store``'s folder.

    The file is ``summary-val.json`` for the val split, ``summary-test.json`` for a backbone's run,
    and ``summary-at-0.8.json`` for a gate for all budgets at 0.8 %.

    Stored results are returned if they belong to the same weights, images, precision and search
    limits; otherwise they are replaced.

    Args:
        run: Run folder; a backbone's run gets its uniform options alone.
        dataset: Data set of the run, or its location; ``None`` reads it from the run's
            configuration.
        split: Split to report on; choices are always made on val.
        budget: Budget on the mean computation in percent for a gate for all budgets; ``None`` keeps
            its current preference.
        device: Device to compute on, as in ``EvaluateConfig``.
        batch_size: Images per batch.
        precision: Number format of the backbone, as in ``EvaluateConfig``.
        search: Limits of the search for the best static bit table; ``None`` for the defaults.
        progress: Callback that receives a short description of each stage.
        cache: Cache shared with evaluations of other runs, which saves common work.
        store: Context manager that yields the output folder, entered if the run has no such
            results; by default the run's own. With another folder nothing is written into the run.

    Raises:
        RunFolderError: If ``run`` is no run folder.
        CheckpointError: If the run has no usable backbone or gate.
        DataError: If the data set is missing or differs from the one of the training.
        ConfigError: If the device is unavailable, or the gate cannot be set to ``budget``.
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
    # The summary.json of a backbone's run already holds its training.
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
        # A summary must never be next to the results of another evaluation.
        path.unlink(missing_ok=True)
        save_per_image_results(_results_path(path), per_image_results_of(methods, costs))
        plots = output_folder / folder.plots_dir.name
        write_figures(plots, figure_prefix(split, budget), summary, examples)
        # Written last: a summary implies that its figures exist.
        write_json(path, config_to_dict(summary))
        return Evaluation(summary, path, _results_path(path), stored=False)


def _results_path(path: Path) -> Path:
    return path.with_name(path.name.replace("summary", "outcomes")).with_suffix(".safetensors")


def _stored_evaluation(path: Path, identity: str) -> Evaluation | None:
    """Return the stored evaluation at a path, ``None`` without one of that identity."""
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
    """Raise ConfigError for settings that do not fit into memory, before anything runs."""
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
    """Return the file name prefix of an evaluation's figures."""
    return ("" if split == "test" else f"{split}-") + ("" if budget is None else f"at-{budget:g}-")


def _load(folder: RunFolder, device: str, precision: Precision, budget: float | None) -> _Loaded:
    """Load the models of a run for evaluation."""
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
    """Load the data set and check that the run was trained on it."""
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
    """Return a digest of all inputs that determine the results."""
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
    """Return the stored summary, ``None`` without one of the current format."""
    from dfs_rl.evaluation.summary import FORMAT, EvaluationSummary

    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            return None
        return config_from_dict(record, EvaluationSummary, str(path))
    except (ConfigError, RunFolderError):  # damaged, treated as missing
        return None


def _measure(
    loaded: _Loaded,
    data: "Dataset",
    subject: "Subject",
    plan: _Plan,
    progress: Callable[[str], None],
) -> "tuple[list[MethodResult], tuple[list[ImageExample], list[ImageExample]] | None]":
    """Evaluate the gate, if there is one, and all baselines."""
    from dfs_rl.evaluation.baselines.methods import (
        EvaluationSetup,
        MethodResult,
        matched_cost_baselines,
        oracle_baseline,
        uniform_baselines,
    )
    from dfs_rl.evaluation.budget_conditioning import gate_text
    from dfs_rl.evaluation.evaluator import evaluate_gate
    from dfs_rl.reporting.images_plot import cheapest_and_most_expensive

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
    examples = cheapest_and_most_expensive(
        records, reported.images, backbone.costs, subject.class_names
    )
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
