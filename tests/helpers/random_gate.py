"""Gate of no kind that the package knows."""

import torch
from torch import Tensor


class RandomGate:
    """Gate that draws every action with equal probability, from 0 to ``n_actions - 1``."""

    name = "random"
    macs = 0.0

    def __init__(self, n_actions: int, *, seed: int = 0) -> None:
        self.n_actions = n_actions
        self.generator = torch.Generator().manual_seed(seed)

    def reset(self, batch_size: int) -> None:
        pass

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        return torch.randint(self.n_actions, (len(features),), generator=self.generator)
