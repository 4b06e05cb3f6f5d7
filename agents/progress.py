"""How a training shows that it is alive: a bar in a terminal, lines elsewhere."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm


class Progress(BaseCallback):
    """Shows steps, the reward while exploring, and the last validation.

    Args:
        total: Steps of the whole training.
        say: Prints a line; used where stderr is not a terminal, once per validation.
    """

    def __init__(self, total: int, *, say: Callable[[str], None]) -> None:
        super().__init__()
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

    def _on_training_start(self) -> None:
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=min(self.model.num_timesteps, self._total),
                unit="step",
                unit_scale=True,
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._bar is None:
            return
        self._bar.n = min(self.model.num_timesteps, self._total)
        shown = {"reward": f"{self.logger.name_to_value['rollout/reward']:.3f}"}
        if self._validated:
            shown["val accuracy"] = f"{self._validated['accuracy']:.1f} %"
            shown["computation"] = f"{self._validated['computation']:.2f} %"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.refresh()

    def _on_training_end(self) -> None:
        if self._bar is not None:
            self._bar.close()
