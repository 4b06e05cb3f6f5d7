"""The best gate so far, kept on the disk and in every checkpoint."""

import copy
from collections.abc import Mapping

from torch import Tensor

from dfs_rl.backbones import StoredBackbone, save_backbone
from dfs_rl.errors import CheckpointError
from dfs_rl.gating.model import BACKBONE_FOLDER, GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.checkpoint import check_finite
from dfs_rl.utils.run_folder import RunFolder


class BestGate:
    """The gate that was kept, and with a co-trained backbone the weights that it belongs to.

    Args:
        run: Where it is kept, under ``gate/`` and ``backbone/``.
        stored: The backbone.
        cotrained: Whether the backbone changes.
    """

    def __init__(self, run: RunFolder, stored: StoredBackbone, *, cotrained: bool) -> None:
        self._run = run
        self._stored = stored
        self._cotrained = cotrained
        self._tensors: dict[str, Tensor] = {}

    def keep(self, gate: LearnedGate) -> None:
        """Keep ``gate`` and the backbone as they are now."""
        self._tensors = {
            f"best_gate.{name}": value.clone() for name, value in gate.state_dict().items()
        }
        save_gate(gate, self._run.path / GATE_FOLDER)
        if self._cotrained:
            weights = self._stored.backbone.state_dict()
            self._tensors |= {
                f"best_backbone.{name}": value.clone() for name, value in weights.items()
            }
            save_backbone(
                self._stored.backbone, self._stored.info, self._run.path / BACKBONE_FOLDER
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs to keep."""
        return dict(self._tensors)

    def restore(self, template: LearnedGate, tensors: Mapping[str, Tensor]) -> None:
        """Keep again what ``tensors`` gave; whatever was kept after that checkpoint is forgotten.

        Raises:
            CheckpointError: If they are of another gate or backbone.
        """
        self._tensors = {name: value for name, value in tensors.items() if name.startswith("best_")}
        backbone = copy.deepcopy(self._stored.backbone)
        try:
            template.load_state_dict(_under("best_gate.", self._tensors))
            if self._cotrained:
                backbone.load_state_dict(_under("best_backbone.", self._tensors))
        except RuntimeError as error:
            raise CheckpointError("the checkpoint's best gate does not fit this run.") from error
        check_finite(template, "the checkpoint")
        save_gate(template, self._run.path / GATE_FOLDER)
        if self._cotrained:
            check_finite(backbone, "the checkpoint")
            save_backbone(backbone, self._stored.info, self._run.path / BACKBONE_FOLDER)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
