"""Check that the graph of a model computes the same as the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from dfs_rl.errors import ConfigError

_TOLERANCE = 1e-4
"""Share of the largest logit: rounding changes less, a lost write changes more."""
_OTHERS = 3
AS_TAKEN = "images as it takes them"
_WAY_OUT = "write it so that its operators return new tensors."


@torch.no_grad()
def returned(model: nn.Module, images: Tensor, what: str, wanted: str) -> list[Tensor]:
    """Return the tensors of a plain call of a model.

    Raises:
        ConfigError: If the call fails.
    """
    running: list[str] = []
    hooks = follow(model, running)
    try:
        result = model(images.clone())  # which some models write into
    except Exception as error:
        raise ConfigError(
            f"the model does not accept {what}, float32 {list(images.shape)}: module "
            f"{innermost(model, running)!r} raises {error_words(error)}; give {wanted}, and a "
            f"model in "
            "float32."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


class _Runner(fx.Interpreter):
    """Runs a graph and collects the tensors of every module in ``values``, if given."""

    def __init__(
        self,
        graph: fx.Graph,
        tensors: Mapping[str, Tensor],
        values: dict[str, list[Tensor]] | None = None,
    ) -> None:
        super().__init__(nn.Module(), graph=graph)
        self.tensors = tensors
        self.values = values

    def get_attr(self, target: Any, *_: object) -> Tensor:  # noqa: ANN401 - torch's signature
        """Return a parameter or constant."""
        return self.tensors[str(target)]

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Run an operator."""
        value = super().run_node(n)
        if self.values is not None and n.op == "call_function" and isinstance(value, Tensor):
            self.values.setdefault(n.meta["module"], []).append(value)
        return value


@torch.no_grad()
def check_faithful(
    model: nn.Module, graph: fx.Graph, tensors: Mapping[str, Tensor], images: Tensor
) -> None:
    """Check that a graph computes the same as its model, on the example images and on others.

    Raises:
        ConfigError: If it does not.
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    drawn = torch.rand(_OTHERS, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    others = low + drawn * torch.where(high > low, high - low, 1)
    name = type(model).__name__
    for what, batch in (("the example images", images), ("random images", others)):
        expected = returned(model, batch, what, AS_TAKEN)[0]
        try:
            parts = (batch, batch[:1], batch[-1:])
            ours, first, last = (_Runner(graph, tensors).run(part.clone()) for part in parts)
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be traced faithfully by torch.export: for {what} its graph fails "
                f"({error_words(error)}); {_WAY_OUT}"
            ) from error
        if not is_close(ours, expected):
            raise ConfigError(_why_other(model, graph, tensors, batch, what, ours, expected))
        alone, together = torch.cat([first, last]), expected[[0, -1]]
        if not is_close(alone, together):
            raise ConfigError(
                f"an image's logits change by {gap(alone, together)} with the other images of its "
                f"batch, "
                f"but a gate runs some of them at a time: does {name} normalise over a batch?"
            )


def _why_other(
    model: nn.Module,
    graph: fx.Graph,
    tensors: Mapping[str, Tensor],
    batch: Tensor,
    what: str,
    ours: Tensor,
    expected: Tensor,
) -> str:
    """Return why a graph computes something else than its model."""
    name = type(model).__name__
    again = returned(model, batch, what, AS_TAKEN)[0]
    if not is_close(again, expected):
        return (
            f"{name} returns other logits for {what} when it is called again, by "
            f"{gap(again, expected)}; does {name} depend on more than its images, as on random "
            "numbers or on what it saw before?"
        )
    module = _first_wrong(model, graph, tensors, batch[:2])
    where = "" if module is None else f", first in what module {module!r} returns"
    return (
        f"{name} cannot be traced faithfully by torch.export: for {what} its graph differs by "
        f"{gap(ours, expected)}{where}; {_WAY_OUT}"
    )


def gap(ours: Tensor, theirs: Tensor) -> str:
    """Return the largest difference of two answers, in words."""
    difference, largest = (float(values.abs().max()) for values in (ours - theirs, theirs))
    return f"{difference:.2g} (the largest is {largest:.2g})"


def is_close(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two answers are equal up to a share of the largest number in them."""
    largest = float(theirs.nan_to_num(0, 0, 0).abs().max())
    bound = _TOLERANCE * max(largest, _TOLERANCE)
    return torch.allclose(ours, theirs, rtol=0, atol=bound, equal_nan=True)


def _first_wrong(
    model: nn.Module, graph: fx.Graph, tensors: Mapping[str, Tensor], images: Tensor
) -> str | None:
    """Return the first module whose output no operator of it in the graph computes, if any."""
    values: dict[str, list[Tensor]] = {}
    _Runner(graph, tensors, values).run(images.clone())
    wrong: list[str] = []

    def compare(name: str, output: object) -> None:
        own = [v for path, vs in values.items() if f"{path}.".startswith(f"{name}.") for v in vs]
        if isinstance(output, Tensor) and own:
            same = (v.shape == output.shape and is_close(v, output) for v in own)
            wrong.extend([] if any(same) else [name])

    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: compare(name, out))
        for name, module in model.named_modules()
        if name
    ]
    model(images.clone())
    for hook in hooks:
        hook.remove()
    return next(iter(wrong), None)


def error_words(error: Exception) -> str:
    """Return an error's type and first line, without torch's advice on its own logs."""
    line = str(error).strip().partition("\n")[0].partition(" For more information")[0]
    said = " ".join(line.split()).rstrip(".!")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def follow(model: nn.Module, running: list[str]) -> list[RemovableHandle]:
    """Keep the names of the running modules in ``running``, outermost first."""

    def leave(*_: object) -> None:
        running.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(leave))
    return hooks


def innermost(model: nn.Module, running: Sequence[str]) -> str:
    """Return the name of the innermost running module, or the model's type."""
    return running[-1] if running and running[-1] else type(model).__name__
