"""Gates that learn by supervision: hard choices, gradients through a relaxation, and a budget that is held on average.

Two methods share one loop. ``gumbel`` draws by the straight-through Gumbel-softmax and pays a price for computation that rises
while the gate spends more than its budget and falls while it spends less; with a dial it learns many budgets at once, each with a
price of its own. ``dfs`` is the gate of Dynamic Fractional Skipping (Shen
et al., AAAI 2020): no noise, and a cost term of fixed weight whose sign flips at the budget, after a first phase in which the gate
learns to execute everything.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from agents.checkpoint import optimizer_tensors, restore_optimizer
from agents.dial_prices import DialPrices
from agents.hyperparameters import Method, SupervisedConfig
from agents.soft_walk import Estimator, argmax_choice, gumbel_choice, soft_walk
from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data import ImageSet
from dfs_rl.data.batching import epoch_batches
from dfs_rl.errors import CheckpointError, ConfigError, TrainingError
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.seeding import torch_generator

_EXECUTES_EVERYTHING = 0.95
"""Of what the dearest options cost, where the first phase of dfs ends."""
_KNOTS = 9
"""Of the prices along a dial, between which they are interpolated."""


class SupervisedLosses(NamedTuple):
    """What one step was like.

    Attributes:
        labels: Cross-entropy.
        divergence: From the full-precision network, None where it was not asked for.
        accuracy: Of the batch under the hard choices, in percent.
        spent: Cost of the gated layers over what the budget leaves for them.
        price: Weight of that ratio in the loss; negative where spending is rewarded.
    """

    labels: float
    divergence: float | None
    accuracy: float
    spent: float
    price: float


class SupervisedTrainer:
    """Trains a gate on a frozen backbone, step by step.

    All randomness is a function of the seed and of the number of steps made, so any step can be resumed.

    Args:
        method: How choices are made and the budget is held.
        config: Hyperparameters.
        backbone: The training form, in evaluation mode; its weights are left alone.
        frozen: The same network in its frozen form.
        gate: Trained in place. With a dial it learns many budgets at once: each image draws a position.
        images: The split to learn from.
        target: What the gated layers may cost on average, as a fraction, at each position, float64 ``[n]`` in and out; without a
            dial it is asked for position 1 alone.
        steps: Length of the training.
        seed: Seed of the run.

    Raises:
        ConfigError: If ``target`` is not positive.
    """

    def __init__(
        self,
        method: Method,
        config: SupervisedConfig,
        *,
        backbone: WalkableBackbone,
        frozen: WalkableBackbone,
        gate: LearnedGate,
        images: ImageSet,
        target: Callable[[Tensor], Tensor],
        steps: int,
        seed: int,
    ) -> None:
        if not bool((target(torch.tensor([0.0, 1.0], dtype=torch.float64)) > 0).all()):
            raise ConfigError(
                "the budget leaves nothing for the gated layers; it must be above what the gate and the fixed parts cost."
            )
        self.gate = gate
        self.steps = 0
        self._dearest = float(backbone.costs.option_costs().amax(dim=1).sum())
        self._method = method
        self._config = config
        self._backbone = backbone
        self._frozen = frozen
        self._images = images
        self._target = target
        self._total = steps
        self._seed = seed
        self._prices = DialPrices(_KNOTS if gate.dial is not None else 1, config.price)
        self._executed_everything = method != "dfs"
        self._batch_size = min(config.batch_size, len(images))
        self._order: tuple[int, list[Tensor]] | None = None
        self._optimizer = torch.optim.Adam(gate.parameters(), lr=config.learning_rate)

    def step(self) -> SupervisedLosses:
        """Learn from one batch.

        Raises:
            TrainingError: If the loss is no longer finite.
        """
        config, progress = self._config, self.steps / self._total
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        batch = self._images.subset(self._rows())
        self.gate.train()
        positions = self._positions(batch.images)
        walk = soft_walk(
            self._backbone,
            self._frozen,
            self.gate,
            batch.images,
            self._estimator(),
            positions=positions,
        )
        labels = functional.cross_entropy(walk.logits, batch.labels)
        where = torch.ones(len(batch.images)) if positions is None else positions.cpu()
        relative = walk.spent / self._target(where.double()).to(walk.spent.device)  # [batch]
        spent = float(relative.detach().mean())
        prices = self._signed_prices(where, spent)
        loss = labels + (prices.to(relative.device) * relative).mean()
        divergence: Tensor | None = None
        if config.distillation:
            divergence = self._divergence(batch.images, walk.logits)
            loss = loss + config.distillation * divergence
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"training stopped at step {self.steps}: its loss is {loss.item()}; a smaller learning_rate may help."
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.gate.parameters(), config.max_grad_norm)
        self._optimizer.step()
        self._adjust(where, relative.detach().cpu())
        self.steps += 1
        right = (walk.logits.argmax(dim=1) == batch.labels).double().mean()
        return SupervisedLosses(
            labels=float(labels.detach()),
            divergence=None if divergence is None else float(divergence.detach()),
            accuracy=100.0 * float(right),
            spent=spent,
            price=float(prices.mean()),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and moments for a checkpoint."""
        weights = {f"gate.{name}": tensor for name, tensor in self.gate.state_dict().items()}
        return weights | optimizer_tensors(self._optimizer, "optimizer")

    @property
    def state(self) -> dict[str, object]:
        """What else a checkpoint needs, as JSON values."""
        return {
            "steps": self.steps,
            "prices": self._prices.knots.tolist(),
            "executed_everything": self._executed_everything,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        """Go back to where ``tensors`` and ``state`` were taken.

        Raises:
            CheckpointError: If they are of another training.
        """
        weights = {
            name.removeprefix("gate."): t for name, t in tensors.items() if name.startswith("gate.")
        }
        try:
            self.gate.load_state_dict(weights)
            restore_optimizer(self._optimizer, tensors, "optimizer")
            self.steps = int(str(state["steps"]))
            self._prices.restore(cast("list[float]", state["prices"]))
            self._executed_everything = bool(state["executed_everything"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError("the checkpoint does not fit this run's gate.") from error

    def _estimator(self) -> Estimator:
        if self._method == "dfs":
            return argmax_choice
        config = self._config
        ratio = config.final_temperature / config.temperature
        temperature = config.temperature * ratio ** (self.steps / self._total)
        device = self._images.labels.device
        generator = torch_generator(self._seed, "gumbel", self.steps, device=device)
        return partial(gumbel_choice, temperature=temperature, generator=generator)

    def _positions(self, images: Tensor) -> Tensor | None:
        """Draw a position of the gate's dial for each image, ``None`` without a dial."""
        if self.gate.dial is None:
            return None
        generator = torch_generator(self._seed, "dial", self.steps, device=images.device)
        return torch.rand(len(images), generator=generator, device=images.device)

    def _signed_prices(self, positions: Tensor, spent: float) -> Tensor:
        """Return what each image pays for its computation relative to its target, float64 ``[batch]``."""
        prices = self._prices.at(positions)
        if self._method == "gumbel":
            return prices
        rewarded = not self._executed_everything or spent < 1.0
        return -prices if rewarded else prices

    def _adjust(self, positions: Tensor, relative: Tensor) -> None:
        """Move the prices, or the phase, by what the images of the last batch cost relative to their targets."""
        if self._method == "gumbel":
            self._prices.follow(positions, relative, rate=self._config.price_rate)
        else:
            spent = float((relative * self._target(positions.double())).mean())
            if spent >= _EXECUTES_EVERYTHING * self._dearest:
                self._executed_everything = True

    def _divergence(self, images: Tensor, logits: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the walk's answer from the full-precision network's."""
        frozen = self._frozen
        with torch.no_grad():
            hidden = frozen.stem(images)
            for layer in frozen.layers:
                hidden = layer(hidden, frozen.options[frozen.options.full])
            teacher = frozen.head(hidden).log_softmax(dim=1)
        return functional.kl_div(
            logits.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True
        )

    def _rows(self) -> Tensor:
        """Which images the next step sees: every image once per pass."""
        per_epoch = len(self._images) // self._batch_size
        epoch, place = divmod(self.steps, per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = epoch_batches(
                len(self._images), self._batch_size, seed=self._seed, epoch=epoch, drop_last=True
            )
            self._order = (epoch, list(order))
        return self._order[1][place]
