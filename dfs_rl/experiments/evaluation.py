"""Evaluation of a run with every baseline; writes ``summary.json`` and figures into its folder.

The test split is evaluated once: for an unchanged run the stored summary is returned.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dfs_rl.backbones import BackboneInfo, WalkableBackbone, load_stored_backbone
from dfs_rl.backbones.footprint import forward_bytes
from dfs_rl.backbones.storage import weights_digest
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.errors import ConfigError, DataError, RunFolderError
from dfs_rl.evaluation.baselines.methods import uniform_baselines
from dfs_rl.evaluation.baselines.registry import EvaluationSetup, MethodResult, run_baselines
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.per_image_results import per_image_results_of, save_per_image_results
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import StaticTable, StaticTableScore
from dfs_rl.evaluation.summary import FORMAT, EvaluationSummary, summarize
from dfs_rl.gating.base import Gate
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER, GatedModel, load
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.reporting.figures import write_figures
from dfs_rl.reporting.images_plot import cheapest_and_most_expensive
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.device import check_memory, resolve_device
from dfs_rl.utils.io import read_json, write_json
from dfs_rl.utils.precision import resolve_frozen
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.yaml_core import read_yaml

ReportedSplit = Literal["test", "val"]
Precision = Literal["auto", "float32", "bfloat16"]
_SELECTION: ReportedSplit = "val"
_TABLE_BYTES = 1000
"""Approximate size of a static bit table with its score in bytes."""
_BACKBONE_KINDS = ("train_backbone", "train_exits")


@dataclass(frozen=True, eq=False)
class SharedResults:
    """Results that evaluations of gates over one backbone and data set share.

    They save time and change no figure.

    Attributes:
        uniform: Results of the uniform options, by the reported split.
        scores: Scores of static bit tables, by the number of val images.
    """

    uniform: dict[str, list[MethodResult]] = field(default_factory=dict)
    scores: dict[int, dict[StaticTable, StaticTableScore]] = field(
        default_factory=lambda: defaultdict(dict)
    )


EvaluationCache = dict[str, SharedResults]
"""Shared results by an identifier of backbone, images, precision and batch size."""


class Evaluation(NamedTuple):
    """Results of an evaluation.

    Attributes:
        summary: Summary of all methods.
        path: File of the summary.
        results_path: File with the per-image results of every method.
        stored: True if the results were read from an earlier evaluation.
    """

    summary: EvaluationSummary
    path: Path
    results_path: Path
    stored: bool


class _Loaded(NamedTuple):
    """Models of a run; without a gate ``model`` is None, without co-training ``before``."""

    backbone: WalkableBackbone
    model: GatedModel | None
    info: BackboneInfo
    before: WalkableBackbone | None


def evaluate_run(  # noqa: PLR0913 - each is one choice of the caller's
    run: RunFolder | Path,
    *,
    dataset: Dataset | str | None = None,
    split: ReportedSplit = "test",
    budget: float | None = None,
    device: str = "auto",
    batch_size: int = 128,
    precision: Precision = "float32",
    search: SearchConfig | None = None,
    progress: Callable[[str], None] = lambda _: None,
    cache: EvaluationCache | None = None,
    store: Callable[[], AbstractContextManager[Path]] | None = None,
) -> Evaluation:
    """Evaluate a run and store ``summary.json`` and ``plots/`` in it, or in ``store``'s folder.

    The file is ``summary-val.json`` for the val split, ``summary-test.json`` for a backbone's run,
    and ``summary-at-0.8.json`` for a gate for all budgets at 0.8 %. Stored results are returned if
    they belong to the same weights, images, precision and search limits, otherwise replaced.

    Args:
        run: Run folder; a backbone's run gets its uniform options alone.
        dataset: Data set of the run, or its location; None reads it from the run's configuration.
        split: Split to report on; choices are always made on val.
        budget: Budget on the mean computation in percent for a gate for all budgets; None keeps its
            current preference.
        device: "auto", "cpu", "cuda", ...
        batch_size: Number of images per batch.
        precision: Number format of the backbone; "auto" selects bfloat16 where it is fast.
        search: Limits of the search for the best static bit table; None for the defaults.
        progress: Callback that receives a short description of each stage.
        cache: Results shared with evaluations of other runs.
        store: Context manager that yields the output folder, entered if the run has no such
            results; by default the run's own. With another folder nothing is written into the run.

    Raises:
        RunFolderError: If ``run`` is no run folder.
        CheckpointError: If the run has no usable backbone or gate.
        DataError: If the data set is missing or differs from the one of the training.
        ConfigError: If the device is unavailable, or the gate cannot be set to ``budget``.
    """
    folder = RunFolder.open(run) if isinstance(run, Path) else run
    search = search or SearchConfig()
    loaded = _load(folder, device, precision, budget)
    data = _dataset(folder, loaded.info, dataset)
    # The summary.json of a backbone's run already contains its training.
    shown = [split] if split != "test" or loaded.model is None else []
    variant = "-".join([*shown, *([] if budget is None else [f"at-{budget:g}"])])
    name = f"summary-{variant}.json" if variant else "summary.json"
    identity = _identity(folder.path, data.fingerprint, split, precision, search, budget)
    found = _stored_evaluation(folder.path / name, identity)
    if found is not None:
        return found
    with nullcontext(folder.path) if store is None else store() as output_folder:
        path = output_folder / name
        found = _stored_evaluation(path, identity)
        if found is not None:
            return found
        if path.exists():
            progress(f"{path} belongs to other weights, images or settings and is replaced")
        backbone = loaded.backbone
        _check_memory(backbone, data, split, batch_size, search)
        digest = weights_digest(folder.path / BACKBONE_FOLDER, exits=True)
        key = f"{digest} {data.fingerprint} {precision} {batch_size}"
        cache = {} if cache is None else cache
        shared = cache.setdefault(key, SharedResults())
        methods = _evaluate_methods(loaded, data, split, search, batch_size, progress, shared)
        summary = summarize(
            methods,
            backbone.costs,
            identity=identity,
            dataset=data.name,
            fingerprint=data.fingerprint,
            split=split,
            class_names=data.class_names,
        )
        examples = None
        if loaded.model is not None:
            images, (records,) = data.split(split).images, methods[0].records
            examples = cheapest_and_most_expensive(
                records, images, backbone.costs, data.class_names
            )
        # A summary must never be next to the results of another evaluation.
        path.unlink(missing_ok=True)
        save_per_image_results(_results_path(path), per_image_results_of(methods, backbone.costs))
        plots = output_folder / folder.plots_dir.name
        write_figures(plots, figure_prefix(split, budget), summary, examples)
        # Written last: a summary implies that its figures exist.
        write_json(path, config_to_dict(summary))
        return Evaluation(summary, path, _results_path(path), stored=False)


def _evaluate_methods(
    loaded: _Loaded,
    data: Dataset,
    split: ReportedSplit,
    search: SearchConfig,
    batch_size: int,
    progress: Callable[[str], None],
    shared: SharedResults,
) -> list[MethodResult]:
    """Return the results of the gate, if there is one, and of the baselines."""
    backbone, model = loaded.backbone, loaded.model
    device = backbone.feature_mean.device
    reported, selection = (data.split(name).to(device) for name in (split, _SELECTION))
    if split not in shared.uniform:
        progress(f"uniform options on {len(reported):,} {split} images")
        shared.uniform[split] = uniform_baselines(
            backbone, reported, selection=selection, batch_size=batch_size
        )
    uniform = shared.uniform[split]
    if model is None:
        return uniform
    progress("the gate")
    records, on_selection = (
        evaluate_gate(backbone, model.gate, images, batch_size=batch_size, budget=model.budget)
        for images in (reported, selection)
    )
    setup = EvaluationSetup(
        backbone=backbone,
        gate=records,
        gate_selection=on_selection,
        uniform=uniform,
        reported=reported,
        selection=selection,
        reported_name=split,
        selection_name=_SELECTION,
        before_cotraining=loaded.before,
        search=search,
        batch_size=batch_size,
        progress=progress,
        cached_scores=shared.scores.__getitem__,
    )
    gate = MethodResult(
        key="gate",
        label=records.name,
        role="gate",
        records=(records,),
        selection=on_selection,
        detail=_gate_text(model.gate),
    )
    return [gate, *run_baselines(setup)]


def _gate_text(gate: Gate) -> str:
    """Describe a cascade, or the preference of a calibrated gate for all budgets."""
    if isinstance(gate, CascadeGate):
        return gate.description
    if not isinstance(gate, LearnedGate) or gate.budget_conditioning is None:
        return ""
    if not gate.budget_conditioning.computations:
        return ""
    computation = gate.budget_conditioning.computation_at(gate.preference)
    return f"budget-conditioned, at a preference where val images cost {computation:.3g} %"


def figure_prefix(split: ReportedSplit, budget: float | None) -> str:
    """Return the file name prefix of an evaluation's figures."""
    return ("" if split == "test" else f"{split}-") + ("" if budget is None else f"at-{budget:g}-")


def _results_path(path: Path) -> Path:
    return path.with_name(path.name.replace("summary", "outcomes")).with_suffix(".safetensors")


def _stored_evaluation(path: Path, identity: str) -> Evaluation | None:
    """Return the stored evaluation at a path, None without one of that identity."""
    results_path = _results_path(path)
    if not path.is_file() or not results_path.is_file():
        return None
    try:
        record = read_json(path)
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            return None
        summary = config_from_dict(record, EvaluationSummary, str(path))
    except (ConfigError, RunFolderError):  # damaged, treated as missing
        return None
    if summary.identity != identity:
        return None
    return Evaluation(summary, path, results_path, stored=True)


def _check_memory(
    backbone: WalkableBackbone,
    data: Dataset,
    split: ReportedSplit,
    batch_size: int,
    search: SearchConfig,
) -> None:
    """Raise ConfigError for settings that do not fit into memory, before anything runs."""
    batch = min(batch_size, max(len(data.split(name)) for name in (split, _SELECTION)))
    tables = min(search.tables, len(backbone.options) ** backbone.costs.n_layers)
    needs = {
        f"batch_size is {batch}": float(batch * forward_bytes(backbone)),
        f"search.tables is {search.tables}": float(tables * _TABLE_BYTES),
    }
    check_memory(needs, backbone.feature_mean.device)


def _load(folder: RunFolder, device: str, precision: Precision, budget: float | None) -> _Loaded:
    torch_device = resolve_device(device)
    dtype = resolve_frozen(precision, torch_device)
    stored = load_stored_backbone(folder.path / BACKBONE_FOLDER)
    if folder.kind in _BACKBONE_KINDS:
        if budget is not None:
            raise ConfigError(
                f"budget is {budget:g} %, but {folder.path} has a backbone and no gate; leave "
                "--budget out."
            )
        backbone = stored.backbone.to_inference(dtype).to(torch_device)
        return _Loaded(backbone, None, stored.info, None)
    model = load(folder.path, device=torch_device, dtype=dtype, budget=budget)
    before = None
    if (folder.path / BEFORE_FOLDER).is_dir():
        stored_before = load_stored_backbone(folder.path / BEFORE_FOLDER).backbone
        before = stored_before.to_inference(dtype).to(torch_device)
    return _Loaded(model.backbone, model, stored.info, before)


def _dataset(folder: RunFolder, info: BackboneInfo, dataset: Dataset | str | None) -> Dataset:
    """Load the data set and check that the run was trained on it."""
    if dataset is None:
        spec = read_yaml(folder.config_path).get("dataset")
        if not isinstance(spec, str):
            raise RunFolderError(
                f"{folder.config_path} names no data set; give one with --dataset."
            )
        try:
            dataset = load_dataset(spec, image_size=info.image_size)
        except DataError as error:
            raise DataError(f"{error} If it moved, give its location with --dataset.") from error
    elif isinstance(dataset, str):
        dataset = load_dataset(dataset, image_size=info.image_size)
    if dataset.fingerprint != info.fingerprint:
        raise DataError(
            f"data set {dataset.name!r} has fingerprint {dataset.fingerprint}, but the backbone of "
            f"{folder.path} was trained on {info.dataset!r} with fingerprint {info.fingerprint}; "
            "images, labels or splits differ."
        )
    return dataset


def _identity(
    folder: Path,
    fingerprint: str,
    split: str,
    precision: Precision,
    search: SearchConfig,
    budget: float | None,
) -> str:
    """Return a digest of all inputs that determine the results."""
    at = "" if budget is None else f" {budget}"
    digest = hashlib.sha256(f"{fingerprint} {split} {precision} {search}{at}".encode())
    for part in (BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER):
        for path in sorted((folder / part).glob("*")):
            if path.suffix in (".json", ".safetensors") and not path.name.startswith("."):
                digest.update(f" {part}/{path.name} {path.stat().st_size} ".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
