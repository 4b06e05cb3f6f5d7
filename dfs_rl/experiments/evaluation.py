"""Evaluation of a run with its baselines; writes ``summary.json`` and figures into its folder.

The test split is evaluated once: for an unchanged run the stored summary is returned.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

from dfs_rl.backbones import BackboneInfo, GatedBackbone, StoredBackbone, load_stored_backbone
from dfs_rl.backbones.footprint import forward_bytes
from dfs_rl.backbones.storage import weights_digest
from dfs_rl.costs import CostTable
from dfs_rl.costs.machine import measured_costs
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.data.corruptions import corrupted
from dfs_rl.errors import ConfigError, DataError, RunFolderError
from dfs_rl.evaluation.baselines.registry import (
    BASELINES,
    EvaluationSetup,
    MethodResult,
    OutputCache,
    run_baselines,
    uniform_baselines,
)
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.metrics import accuracy_error
from dfs_rl.evaluation.pass_outputs import run_uniform
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.search import CachedScores
from dfs_rl.evaluation.summary import per_image_results_of, save_per_image_results, summarize
from dfs_rl.experiments.arguments import names_of
from dfs_rl.experiments.budgets import with_percent_budgets
from dfs_rl.experiments.config import EvaluateConfig, ReportedSplit
from dfs_rl.experiments.stored_evaluation import (
    Evaluation,
    identity_of,
    name_parts,
    stored_evaluation,
)
from dfs_rl.gating.base import Gate
from dfs_rl.gating.loading import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER, add_gate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import passes_of
from dfs_rl.gating.rules import RuleGate
from dfs_rl.reporting.figures import write_figures
from dfs_rl.reporting.images_plot import cheapest_and_most_expensive, images_plot
from dfs_rl.reporting.tables import summary_text
from dfs_rl.utils import precision
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.constants import Corruptions
from dfs_rl.utils.device import check_memory, resolve_device, set_threads
from dfs_rl.utils.io import write_json
from dfs_rl.utils.logging import print_result, print_status
from dfs_rl.utils.run_folder import BACKBONE_KINDS, RunFolder
from dfs_rl.utils.yaml_core import read_yaml

_SELECTION: ReportedSplit = "val"
_TABLE_BYTES = 1000  # approximate size of a static bit table with its score


_Shared = tuple[OutputCache, CachedScores]
EvaluationCache = dict[str, _Shared]
"""Outputs of rules and scores of tables, by an identifier of what evaluations must have in common.

These are backbone, images, precision and batch size.
"""


def run(invocation: Invocation[EvaluateConfig]) -> None:
    """Evaluate a run, print its table and write its summary."""
    config = invocation.config
    set_threads(config.threads)
    result = evaluate_run(config, progress=lambda text: print_status(f"{text} ..."))
    print_result(summary_text(result.summary))
    if result.stored:
        print_status(f"Stored in {result.path}: neither the run nor the settings have changed.")
    else:
        print_status(f"Written to {result.path} and {config.run / 'plots'}.")


def evaluate_run(
    config: EvaluateConfig,
    dataset: Dataset | str | None = None,
    *,
    baselines: Iterable[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    stored: StoredBackbone | None = None,
    cache: EvaluationCache | None = None,
    store: Callable[[], AbstractContextManager[Path]] | None = None,
) -> Evaluation:
    """Evaluate a run and store ``summary.json`` and ``plots/`` in it, or in ``store``'s folder.

    The file is ``summary-val.json`` for the val split, ``summary-test.json`` for a backbone's run,
    ``summary-at-0.8.json`` for a gate for all budgets at 0.8 %, ``summary-at-15-ms.json`` for one
    with the cost latency, ``summary-drop-1.json`` for one that loses at most a point,
    ``summary-mixed.json`` for a given stream, ``summary-bfloat16.json`` in this precision,
    ``summary-measured-torch.json`` with the times of a given profile of that runtime, and
    ``summary-only-cascade.json`` for this baseline alone. Figures are named likewise.
    Stored results are returned if they belong to the same weights, images, precision, times,
    baselines and search limits, otherwise replaced.

    Args:
        config: Configuration of the evaluation.
        dataset: Data set of the run, or its location; by default from the configuration or the run.
        baselines: Names of the baselines to run; None for all that apply.
        progress: Receives a short description of each stage.
        stored: Backbone of the run, if it is loaded already.
        cache: Results shared with evaluations of other runs.
        store: Yields another output folder than the run, entered if the run has no such results.

    Raises:
        RunFolderError: If the folder is no run, or its training has not stored a gate yet.
        CheckpointError: If the run has no usable backbone or gate.
        DataError: If the data set is missing or differs from the one of the training.
        ConfigError: If a setting does not suit the run or the machine.
    """
    folder = RunFolder.open(config.run)
    baselines = _checked_baselines(folder, baselines)
    stored = stored or load_stored_backbone(folder.path)
    config = with_percent_budgets(config, stored.backbone.costs)
    backbone, model, before = _load(folder, config, stored)
    costs = backbone.costs
    measured = measured_costs(costs, config.profile)
    given = config.dataset if dataset is None else dataset
    data = _dataset(folder, stored.info, given, config.corruptions)
    only = [] if baselines is None else ["only", *baselines]
    # The summary.json of a backbone's run already contains its training.
    shown = [config.split] if config.split != "test" or model is None else []
    profile = None if measured is None else measured.profile
    point = name_parts(config, costs, None if config.profile is None else profile)
    name = "-".join(["summary", *shown, *point, *only]) + ".json"
    ran = BASELINES if baselines is None else baselines
    identity = identity_of(config, data.fingerprint, profile, ran)
    if found := stored_evaluation(folder.path / name, identity):
        return found
    with nullcontext(folder.path) if store is None else store() as output_folder:
        path = output_folder / name
        if found := stored_evaluation(path, identity):
            return found
        if path.exists():
            progress(f"{path} belongs to other weights, images or settings and is replaced")
        _check_memory(backbone, data, config)
        digest = weights_digest(folder.path / BACKBONE_FOLDER, exits=True)
        key = f"{digest} {data.fingerprint} {config.precision} {config.batch_size}"
        shared = ({} if cache is None else cache).setdefault(key, ({}, {}))
        methods = _evaluate_methods(
            backbone, model, before, data, config, baselines, progress, shared
        )
        summary = summarize(
            methods,
            costs,
            measured=measured,
            budget=_budget(folder, config),
            identity=identity,
            dataset=data.name,
            fingerprint=data.fingerprint,
            split=config.split,
            class_names=data.class_names,
        )
        drawn = None
        if model is not None:
            images, (records,) = data.split(config.split).images, methods[0].records
            rows = cheapest_and_most_expensive(records, costs)
            drawn = images_plot(rows, records, images, costs, data.class_names)
        # A summary must never be next to the results of another evaluation.
        path.unlink(missing_ok=True)
        evaluation = Evaluation(summary, path)
        per_image = per_image_results_of(methods, costs, measured)
        save_per_image_results(evaluation.results_path, *per_image)
        plots = output_folder / folder.plots_dir.name
        write_figures(plots, evaluation.figure_prefix, summary, drawn)
        # Written last: a summary implies that its figures exist.
        write_json(path, config_to_dict(summary))
        return evaluation


def _checked_baselines(folder: RunFolder, baselines: Iterable[str] | None) -> Sequence[str] | None:
    """Return named baselines once each, in the order in which they run."""
    if baselines is None:
        return None
    names = names_of("baselines", baselines)
    for name in names:
        if not isinstance(name, str) or name not in BASELINES:
            raise ConfigError(f"baselines has {name!r}; allowed are {', '.join(BASELINES)}.")
    if folder.kind in BACKBONE_KINDS:
        raise ConfigError(
            f"baselines is {names}, but {folder.path} has a backbone and no gate, so only its "
            "uniform options are evaluated; leave it out."
        )
    return [name for name in BASELINES if name in names]


def _evaluate_methods(
    backbone: GatedBackbone,
    model: GatedModel | None,
    before: GatedBackbone | None,
    data: Dataset,
    config: EvaluateConfig,
    baselines: Sequence[str] | None,
    progress: Callable[[str], None],
    shared: _Shared,
) -> list[MethodResult]:
    """Return the results of the gate, if there is one, and of the baselines."""
    split, batch_size, device = config.split, config.batch_size, backbone.feature_mean.device
    reported, selection = (data.split(name).to(device) for name in (split, _SELECTION))
    if model is None:
        progress(f"uniform options on {len(reported):,} {split} images")
        outputs = [run_uniform(backbone, i, batch_size=batch_size) for i in (reported, selection)]
        return uniform_baselines(backbone.options, *outputs)
    progress("the gate")
    records, on_selection = (
        evaluate_gate(backbone, model.gate, images, batch_size=batch_size, budget=model.budget)
        for images in (reported, selection)
    )
    setup = EvaluationSetup(
        backbone=backbone,
        gate=records,
        gate_selection=on_selection,
        reported=reported,
        selection=selection,
        reported_name=split,
        selection_name=_SELECTION,
        before_cotraining=before,
        passes=passes_of(model.gate),
        search=config.search,
        batch_size=batch_size,
        progress=progress,
        cached_outputs=shared[0],
        cached_scores=shared[1],
    )
    gate = MethodResult(
        key="gate",
        label=records.name,
        role="gate",
        records=(records,),
        selection=on_selection,
        detail=_gate_text(model.gate, backbone.costs, on_selection),
    )
    return [gate, *run_baselines(setup, baselines)]


def _budget(folder: RunFolder, config: EvaluateConfig) -> float | None:
    """Return the budget of the gate's mean cost in percent: the given one, or that of its run."""
    if config.budget is not None or config.max_accuracy_drop is not None:
        return config.budget
    return cast("float | None", read_yaml(folder.config_path).get("budget"))


def _gate_text(gate: Gate, costs: CostTable, val: GateRecords) -> str:
    """Describe a rule, or the preference of a gate for all budgets, with its accuracy on val."""
    accuracy = (
        f"{val.accuracy:.2f} ± {accuracy_error(val.accuracy, len(val)):.2f} % accuracy on "
        f"{len(val):,} {_SELECTION} images"
    )
    if isinstance(gate, RuleGate):
        return f"{gate.description}; {accuracy}"
    if not isinstance(gate, LearnedGate):
        return ""
    measured = gate.budget_conditioning
    if measured is None:
        return ""
    if not measured.computations:
        return (
            "budget-conditioned, but not calibrated yet, since its training has not ended: it is "
            "set to no budget and may cost more"
        )
    cost = costs.cost_text(measured.computation_at(gate.preference), 3)
    return f"budget-conditioned, at a preference where val images cost {cost}; {accuracy}"


def _check_memory(backbone: GatedBackbone, data: Dataset, config: EvaluateConfig) -> None:
    """Raise ConfigError for settings that do not fit into memory, before anything runs."""
    batch = min(config.batch_size, max(len(data.split(n)) for n in (config.split, _SELECTION)))
    tables = min(config.search.tables, len(backbone.options) ** backbone.costs.n_layers)
    needs = {
        f"batch_size is {batch}": float(batch * forward_bytes(backbone)),
        f"search.tables is {config.search.tables}": float(tables * _TABLE_BYTES),
    }
    check_memory(needs, backbone.feature_mean.device)


def _load(
    folder: RunFolder, config: EvaluateConfig, stored: StoredBackbone
) -> tuple[GatedBackbone, GatedModel | None, GatedBackbone | None]:
    """Return a run's backbone, gate, and backbone before co-training, if it has the latter two."""
    device, budget, drop = resolve_device(config.device), config.budget, config.max_accuracy_drop
    dtype = precision.resolve(config.precision, device, frozen=True)
    if folder.kind in BACKBONE_KINDS:
        if budget is not None or drop is not None:
            given = f"max_accuracy_drop is {drop}" if budget is None else f"budget is {budget:g} %"
            raise ConfigError(
                f"{given}, but {folder.path} has a backbone and no gate; leave it out."
            )
        return stored.backbone.to_inference(dtype).to(device), None, None
    gate, before = folder.path / GATE_FOLDER, folder.path / BEFORE_FOLDER
    try:
        model = add_gate(
            stored, gate, device=device, dtype=dtype, budget=budget, max_accuracy_drop=drop
        )
    except ConfigError as error:
        raise ConfigError(f"{folder.path}: {error}") from error
    if not before.is_dir():
        return model.backbone, model, None
    original = load_stored_backbone(before).backbone.to_inference(dtype).to(device)
    return model.backbone, model, original


def _dataset(
    folder: RunFolder,
    info: BackboneInfo,
    dataset: Dataset | str | None,
    corruptions: Corruptions | None,
) -> Dataset:
    """Load the data set as a stream, by default the run's, and check that the run belongs to it."""
    settings = read_yaml(folder.config_path)
    named = settings.get("dataset") if dataset is None else dataset
    if not isinstance(named, Dataset | str):
        raise RunFolderError(f"{folder.config_path} names no data set; give one with --dataset.")
    try:
        data = load_dataset(named, image_size=info.image_size) if isinstance(named, str) else named
    except DataError as error:
        if dataset is not None:
            raise
        raise DataError(f"{error} If it moved, give its location with --dataset.") from error
    clean = data.clean
    if clean.fingerprint != info.fingerprint:
        raise DataError(
            f"data set {clean.name!r} has fingerprint {clean.fingerprint}, but the backbone of "
            f"{folder.path} was trained on {info.dataset!r} with fingerprint {info.fingerprint}; "
            "images, labels or splits differ."
        )
    own = cast("Corruptions", settings.get("corruptions") or "none")
    return corrupted(data, corruptions or own)
