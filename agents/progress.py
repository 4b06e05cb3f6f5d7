"""How a training shows that it is alive: a bar in a terminal, lines elsewhere."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm


class ProgressBar:
    """Shows timesteps, a figure of the training and the last validation.

    Args:
        total: Timesteps of the whole training.
        say: Prints a line; used where stderr is not a terminal, once per validation.
    """

    def __init__(self, total: int, *, say: Callable[[str], None]) -> None:
        self._total = total
        self._say = say
        self._bar: tqdm[Any] | None = None
        self._validated: Mapping[str, Any] = {}

    def report(self, timesteps: int, record: Mapping[str, Any]) -> None:
        """Take note of a validation."""
        self._validated = record
        if not sys.stderr.isatty():
            self._say(
                f"step {timesteps:,} of {self._total:,}: val accuracy {record['accuracy']:.2f} %, computation "
                f"{record['computation']:.3f} %, reward {record['reward']:.4f}, distinct patterns {record['patterns']}"
            )

    def start(self, timesteps: int) -> None:
        """Show the bar, if there is a terminal, with so many steps made."""
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=min(timesteps, self._total),
                unit="step",
                unit_scale=True,
            )

    def update(self, timesteps: int, **figures: str) -> None:
        """Move the bar to so many steps and show figures beside it."""
        if self._bar is None:
            return
        self._bar.n = min(timesteps, self._total)
        if self._validated:
            figures["val accuracy"] = f"{self._validated['accuracy']:.1f} %"
            figures["computation"] = f"{self._validated['computation']:.2f} %"
        self._bar.set_postfix(figures, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class Progress(BaseCallback):
    """Moves a bar with an algorithm's rollouts, beside the reward while exploring.

    Args:
        bar: What is shown.
    """

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__()
        self._bar = bar

    def _on_training_start(self) -> None:
        self._bar.start(self.model.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        reward = self.logger.name_to_value["rollout/reward"]
        self._bar.update(self.model.num_timesteps, reward=f"{reward:.3f}")

    def _on_training_end(self) -> None:
        self._bar.close()
