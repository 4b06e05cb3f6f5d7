"""Upload of trained gates to the Hugging Face hub."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData

from dfs_rl.backbones.storage import STRUCTURE_FILE, load_info
from dfs_rl.errors import ConfigError, RunFolderError
from dfs_rl.evaluation.summary import EvaluationSummary
from dfs_rl.experiments.api import TrainedGate
from dfs_rl.experiments.stored_evaluation import model_digest
from dfs_rl.gating.loading import BACKBONE_FOLDER, GATE_FOLDER, MODEL_FILES
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.hub import check_repository_name, hub_errors
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import package_version, read_record

_SUMMARY = "summary.json"
_HUB_DATASET = re.compile(r"[\w.-]+/[\w.-]+")


def push_to_hub(
    run: TrainedGate | str | Path,
    repository: str,
    *,
    licence: str,
    private: bool = False,
    message: str = "Upload a gate of DFS-RL",
) -> str:
    """Upload network and gate of an evaluated run, with a model card, in one commit.

    The files are those that ``dfs_rl.load`` reads: JSON and safetensors. The card has the figures
    of ``summary.json``, and the command line of the run.

    Args:
        run: Trained gate or its run folder.
        repository: Name ``user/name``; the repository is created if it is missing.
        licence: Licence of the weights as the hub writes it, for example ``"mit"``.
        private: Whether a new repository is private.
        message: Message of the commit.

    Returns:
        URL of the commit.

    Raises:
        ConfigError: If a value is not allowed.
        RunFolderError: If the folder is no run, or is not evaluated on its test split
            with these weights.
        CheckpointError: If the run has no gate.
        HubError: If the repository cannot be written.
    """
    if not isinstance(run, TrainedGate | str | Path):
        raise ConfigError(
            f"run is {type(run).__name__}; allowed are a TrainedGate or a run folder."
        )
    check_repository_name(repository)
    path = run.path if isinstance(run, TrainedGate) else Path(run)
    card = model_card(path, repository, licence=licence)
    names = sorted(file for pattern in MODEL_FILES for file in path.glob(pattern))
    content = [CommitOperationAdd(file.relative_to(path).as_posix(), file) for file in names]
    content.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi(library_name="dfs-rl", library_version=package_version("dfs-rl"))
    with hub_errors(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, content, commit_message=message).commit_url)


def model_card(path: Path, repository: str, *, licence: str) -> str:
    """Return the model card of an evaluated run, Markdown with the hub's metadata."""
    record = RunFolder.open(path).record()
    gate = load_gate(path / GATE_FOLDER)
    if not (path / _SUMMARY).is_file():
        raise RunFolderError(
            f"{path} is not evaluated on the test split; run python -m dfs_rl.evaluate {path}."
        )
    summary = read_record(path / _SUMMARY, EvaluationSummary)
    if not summary.identity.endswith(model_digest(path)):
        raise RunFolderError(
            f"{path / _SUMMARY} does not belong to the weights in the run; run python -m "
            f"dfs_rl.evaluate {path} again."
        )
    structure = cast("dict[str, Any]", read_json(path / BACKBONE_FOLDER / STRUCTURE_FILE))
    conditioning = getattr(gate, "budget_conditioning", None)
    name = repository.partition("/")[2]
    figures = summary.methods[0]
    dataset = load_info(path / BACKBONE_FOLDER).dataset  # without the name of a stream
    data = ModelCardData(
        license=licence,
        library_name="dfs-rl",
        pipeline_tag="image-classification",
        tags=["dynamic-inference", "quantization"],
        datasets=[dataset] if _HUB_DATASET.fullmatch(dataset) else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset,
                dataset_name=summary.dataset,
                dataset_split=summary.split,
                metric_type=kind,
                metric_value=value,
                metric_name=label,
            )
            for kind, value, label in (
                ("accuracy", figures.accuracy, f"accuracy in percent, n = {figures.n}"),
                (summary.cost_model, figures.computation, f"{summary.cost_model} in percent"),
            )
        ],
    )
    template = files("dfs_rl.reporting") / "templates" / "model_card.md"
    card = ModelCard.from_template(
        data,
        template_str=template.read_text(encoding="utf-8"),
        name=name,
        repository=repository,
        version=package_version("dfs-rl"),
        summary=summary,
        record=record,
        budget_range=None if conditioning is None else conditioning.budget_range,
        constructor=structure["config"].get("constructor"),
    )
    return str(card)
