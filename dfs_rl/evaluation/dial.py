"""What a gate for all budgets costs at each position of its dial."""

import torch

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.run_gate import BATCH_SIZE, evaluate_gate
from dfs_rl.gating.dial import Dial, measured_positions
from dfs_rl.gating.learned import LearnedGate

POSITIONS = 17
"""How many are measured: between two of them the cost of most gates changes by a tenth or less."""


def measure_dial(
    backbone: WalkableBackbone,
    gate: LearnedGate,
    images: ImageSet,
    *,
    batch_size: int = BATCH_SIZE,
) -> Dial:
    """Walk images at evenly spaced positions of a gate's dial.

    Args:
        backbone: The backbone, on the device of ``images``.
        gate: A gate with a dial.
        images: Of the validation split; the test split has no part in what a budget means.
        batch_size: Images that walk together.

    Returns:
        A dial with its ``computations``.
    """
    found = []
    for position in measured_positions(POSITIONS):
        turned = torch.full((len(images),), position, device=images.images.device)
        records = evaluate_gate(
            backbone, gate, images, batch_size=batch_size, budget=gate.budget, positions=turned
        )
        found.append(float(records.computation(backbone.costs).mean()))
    return Dial(computations=tuple(found))
