"""Loading of gated models from run folders and from the hub."""

from pathlib import Path

import torch

from dfs_rl.backbones import StoredBackbone, load_stored_backbone
from dfs_rl.backbones.base import FROZEN_DTYPES
from dfs_rl.costs import BudgetUnit
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.hub import SCHEME, download
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import check_trained, unfinished_training

BACKBONE_FOLDER = "backbone"
GATE_FOLDER = "gate"
MODEL_FILES = tuple(
    f"{folder}/*.{suffix}"
    for folder in (BACKBONE_FOLDER, GATE_FOLDER)
    for suffix in ("json", "safetensors")
)
"""Patterns of the files that ``load`` reads; none of them is code."""
BEFORE_FOLDER = "backbone-before"
"""Folder with the backbone before co-training, next to the co-trained one."""


def load(
    run_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    inference_form: bool = True,
    dtype: torch.dtype = torch.float32,
    budget: float | None = None,
    budget_unit: BudgetUnit = "percent",
    max_accuracy_drop: float | None = None,
    trust_code: bool = False,
) -> GatedModel:
    """Load the trained backbone and gate of a run folder, or of a repository on the hub.

    A gate that was trained with a per-input budget keeps it. Of a training that has not finished it
    is the best gate so far, with a warning.

    ``logits, trace = model(images)`` classifies; ``model.classes`` lists the class names.

    Args:
        run_dir: The run folder, or ``"hf://user/name"`` or ``"hf://user/name@revision"`` for a
            repository of ``dfs_rl.push_to_hub`` on the Hugging Face hub, of which only JSON and
            safetensors files are downloaded.
        device: ``"cpu"``, ``"cuda"``, ...; ``"auto"`` selects a GPU if there is one.
        inference_form: Use the inference form of the backbone; the training form is slower and
            supports gradients.
        dtype: Data type of the inference form: float32, or bfloat16 if the hardware is fast at it.
        budget: See ``GatedModel.set_budget``; ``None`` for the stored setting.
        budget_unit: Unit of ``budget``.
        max_accuracy_drop: See ``GatedModel.set_max_accuracy_drop``; instead of ``budget``.
        trust_code: Allow the import of the constructor, ``module:function``, that made the network
            of a run.

    Raises:
        CheckpointError: If the folder contains no backbone with a gate, or the two do not fit.
        ConfigError: If the gate does not support ``budget`` or ``max_accuracy_drop``, the network
            needs code that is not trusted, or a value is invalid.
        HubError: If the repository cannot be downloaded.
        RunFolderError: If the training of the run has not stored a gate yet.
    """
    if not isinstance(run_dir, str | Path):
        raise ConfigError(f"run_dir is {run_dir!r}; allowed is the path of a run folder.")
    place = resolve_device(device)
    allowed = FROZEN_DTYPES if inference_form else (torch.float32,)
    if dtype not in allowed:
        form = "inference" if inference_form else "training"
        raise ConfigError(
            f"dtype is {dtype!r}; the {form} form computes in {' or '.join(map(str, allowed))}."
        )
    source = str(run_dir)
    folder = download(source, MODEL_FILES) if source.startswith(SCHEME) else Path(run_dir)
    for part in (BACKBONE_FOLDER, GATE_FOLDER):
        _check_folder(folder / part, source)
    stored = load_stored_backbone(folder / BACKBONE_FOLDER, trust_code=trust_code)
    return add_gate(
        stored,
        folder / GATE_FOLDER,
        device=place,
        dtype=dtype if inference_form else None,
        budget=budget,
        budget_unit=budget_unit,
        max_accuracy_drop=max_accuracy_drop,
    )


def add_gate(
    stored: StoredBackbone,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    budget: float | None = None,
    budget_unit: BudgetUnit = "percent",
    max_accuracy_drop: float | None = None,
) -> GatedModel:
    """Return a loaded backbone with the gate in a folder, see ``load``.

    ``dtype`` is that of the inference form; ``None`` uses the training form.
    """
    _check_folder(folder, str(folder.parent))
    if unfinished := unfinished_training(folder.parent):
        print_status(f"Warning: {unfinished}. This is its best gate so far.")
    if budget is not None and max_accuracy_drop is not None:
        raise ConfigError(
            f"budget is {budget} and max_accuracy_drop is {max_accuracy_drop}; give one of them."
        )
    if budget is None and budget_unit != "percent":
        raise ConfigError(f"budget_unit is {budget_unit!r}, but no budget is given; leave it out.")
    trained, info, gate = stored.backbone, stored.info, load_gate(folder)
    model = GatedModel(
        trained if dtype is None else trained.to_inference(dtype),
        gate,
        budget=gate.budget,
        classes=info.class_names,
        image_size=info.image_size,
    )
    if budget is not None:
        model.set_budget(budget, budget_unit)
    if max_accuracy_drop is not None:
        model.set_max_accuracy_drop(max_accuracy_drop)
    return model.to(device).eval()


def _check_folder(folder: Path, source: str) -> None:
    if not folder.is_dir():
        check_trained(folder.parent)
        raise CheckpointError(
            f"{source} has no folder {folder.name!r}, so it is not the run of a trained gate."
        )
