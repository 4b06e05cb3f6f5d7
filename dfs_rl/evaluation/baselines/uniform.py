"""What a backbone gets right, and costs, where all layers of all images run at the same bits."""

from collections.abc import Mapping

import torch

from dfs_rl.backbones.base import Backbone
from dfs_rl.evaluation.curves import CurvePoint


def uniform_points(backbone: Backbone, accuracies: Mapping[str, float]) -> list[CurvePoint]:
    """Return what every uniform setting costs and gets right, in percent, from the accuracies that ``uniform_accuracies`` gives."""
    costs = backbone.costs
    settings = [torch.full((1, costs.n_layers), costs.options.index(int(b))) for b in accuracies]
    return [
        CurvePoint(costs.computation(options).item(), accuracy)
        for options, accuracy in zip(settings, accuracies.values(), strict=True)
    ]
