"""Networks that a latency profile measures, in the form in which they are deployed."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dfs_rl.backbones.interfaces import activations
from dfs_rl.costs.latency_profile import Runtime
from dfs_rl.errors import ConfigError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate, MLPGate
from dfs_rl.gating.observation import observation_width
from dfs_rl.gating.passes import ANSWER
from dfs_rl.runtime.export import export, table_files

if TYPE_CHECKING:
    from dfs_rl.runtime.onnx_session import OnnxSession

Result = TypeVar("Result")
Setting = tuple[int, ...]
"""Action of every layer, see ``CostTable``."""
_IMAGES = 32
_GATES: dict[Runtime, int] = {"torch": 8, "onnx": 2, "onnx-int8": 2}  # each export takes seconds
_CALLS_ALONE = 20
_FIRST_RUNS = 4
"""Runs that are not timed: a new session allocates memory, and displaces others from the caches."""


class TimesAlone(NamedTuple):
    """Seconds of parts that run alone, all layers at the first option.

    Attributes:
        parts: Stem, every gated layer, head.
        gate: Features and decision before every gated layer.
    """

    parts: NDArray[np.float64]
    gate: NDArray[np.float64]


class TorchNetwork:
    """A network as ``dfs_rl.load`` returns it, with various learned gates.

    A run is a function, prepared outside of the time that it takes, which returns its setting. The
    images of a call are all the same, so that a gate decides equally for them.
    """

    def __init__(self, models: Sequence[GatedModel], *, batch_size: int) -> None:
        self._model, self._models = models[0], cycle(models)
        self._device = self._model.backbone.feature_mean.device
        shape = self._model.backbone.image_shape
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (_IMAGES, 1, *shape), dtype=torch.uint8, generator=generator)
        batches = [one.expand(batch_size, *shape).contiguous().to(self._device) for one in pixels]
        self._batches = cycle(batches)

    def at(self, setting: Setting) -> Callable[[], Setting]:
        """Return a run at a setting."""
        return self._run_of(GatedModel(self._model.backbone, TableGate(setting)).eval())

    def gated(self) -> Callable[[], Setting]:
        """Return a run with the next gate."""
        return self._run_of(next(self._models))

    @torch.no_grad()
    def times_alone(self) -> TimesAlone:
        """Measure the parts one by one."""
        backbone, gate = self._model.backbone, self._model.gate
        assert isinstance(gate, LearnedGate)
        images, least = next(self._batches), backbone.options[0]
        hidden = list(activations(backbone, backbone.stem(images), least))
        n = len(images)
        features = torch.zeros(n, observation_width(backbone), device=self._device)
        context = torch.zeros(n, gate.context_size, device=self._device)
        parts, decisions = [self._time(backbone.stem, images)], []
        gate.reset(n)
        for i, layer in enumerate(backbone.layers):
            parts.append(self._time(layer, hidden[i], least))
            seconds = self._time(gate.decide, features, i, context)
            if gate.feature_sizes[i]:
                seconds += self._time(backbone.feature, hidden[i], i)
            decisions.append(seconds)
        parts.append(self._time(backbone.head, hidden[-1]))
        return TimesAlone(np.array(parts), np.array(decisions))

    def _run_of(self, model: GatedModel) -> Callable[[], Setting]:
        images = next(self._batches)

        def run() -> Setting:
            _, trace = self._finished(model(images))
            return tuple(trace.options[0].tolist())

        return run

    def _finished(self, result: Result) -> Result:
        """Return a result when the device is done with it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result

    def _time(self, call: Callable[..., object], *arguments: object) -> float:
        """Return the median time of a call in seconds."""
        times = []
        for _ in range(_CALLS_ALONE):
            start = time.perf_counter()
            self._finished(call(*arguments))
            times.append(time.perf_counter() - start)
        return float(np.median(times))


class OnnxNetwork:
    """A network as ``export`` writes it: static bit tables, and various gates.

    Runs and the images of a call are as of ``TorchNetwork``.

    Args:
        gated: Sessions of the gates.
        table: Opens the session of a setting.
        model: The network with its own gate.
        batch_size: Images per call.
    """

    def __init__(
        self,
        gated: Sequence["OnnxSession"],
        table: Callable[[Setting], "OnnxSession"],
        *,
        model: GatedModel,
        batch_size: int,
    ) -> None:
        self._gated, self._table = cycle(gated), table
        shape = (_IMAGES, 1, *model.backbone.image_shape)
        pixels = np.random.default_rng(0).random(shape, dtype=np.float32)
        self._batches = cycle([one.repeat(batch_size, axis=0) for one in pixels])
        assert isinstance(model.gate, LearnedGate)
        self._preference: dict[str, NDArray[np.float32]] = {}
        if model.gate.budget_conditioning is not None:
            preference = model.gate.preference
            self._preference["preference"] = np.full(batch_size, preference, np.float32)

    def at(self, setting: Setting) -> Callable[[], Setting]:
        """Return a run at a setting."""
        run = self._run_of(self._table(setting), {})

        def run_setting() -> Setting:
            run()
            return setting

        return run_setting

    def gated(self) -> Callable[[], Setting]:
        """Return a run with the next gate."""
        run = self._run_of(next(self._gated), self._preference)
        return lambda: tuple(run()[1][0].tolist())

    def times_alone(self) -> None:
        """Return ``None``: the parts lie in one graph."""

    def _run_of(
        self, session: "OnnxSession", inputs: Mapping[str, NDArray[np.float32]]
    ) -> Callable[[], Sequence[NDArray[Any]]]:
        batch = next(self._batches)
        run = partial(session.run, {"images": batch, **inputs})
        for _ in range(_FIRST_RUNS if len(batch) == 1 else 1):
            run()
        return run


TimedNetwork = TorchNetwork | OnnxNetwork


def _answer_at_once(gate: LearnedGate) -> None:
    """Make a gate answer at the end of the first pass."""
    if not isinstance(gate, MLPGate):
        raise ConfigError(
            f"gate {gate.name!r} is a {type(gate).__name__} of {gate.passes.limit} passes; profile "
            "measures gates of a single pass, and of several those that are an MLPGate."
        )
    *_, last = gate.networks[-1].modules()
    assert isinstance(last, nn.Linear)
    last.weight.data.zero_()
    last.bias.data.copy_(torch.arange(len(last.bias)) == ANSWER)


def timed_networks(
    model: GatedModel, runtime: Runtime, *, batch_sizes: Sequence[int], threads: int
) -> list[TimedNetwork]:
    """Return a network in the form that a runtime runs, with gates of the shape of its own.

    A decision takes longer after a layer that ran. The gates have random weights, so that each
    chooses options of its own. Those of several passes answer after the first one, whose time that
    of the gate is.

    Raises:
        ConfigError: If several passes are those of a kind of gate that is not built in, or the gate
            cannot be exported for ``runtime``.
    """
    generator = torch.Generator().manual_seed(0)
    models = []
    for _ in range(_GATES[runtime]):
        gate = copy.deepcopy(model.gate)
        assert isinstance(gate, LearnedGate)
        for parameter in gate.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter)
        if gate.passes.limit > 1:
            _answer_at_once(gate)
        models.append(GatedModel(model.backbone, gate, budget=model.budget).eval())
    if runtime == "torch":
        return [TorchNetwork(models, batch_size=batch_size) for batch_size in batch_sizes]
    from dfs_rl.runtime.onnx_session import OnnxSession

    with TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        files = [export(one, path, format=runtime).read_bytes() for one in models]
    gated = [OnnxSession(file, threads=threads) for file in files]
    table = table_files(model.backbone, format=runtime)
    return [
        OnnxNetwork(
            gated,
            lambda setting: OnnxSession(table(setting), threads=threads),
            model=model,
            batch_size=n,
        )
        for n in batch_sizes
    ]
