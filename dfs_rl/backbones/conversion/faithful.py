"""Check that the graph of a model computes the same as the model."""

import traceback
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dfs_rl.errors import ConfigError

_TOLERANCE = 1e-4
"""Share of the largest logit: rounding changes less, a lost write changes more."""
_OTHERS = 3
_WAY_OUT = "write it so that its operators return new tensors."


@torch.no_grad()
def returned(
    model: nn.Module, images: Tensor, what: str, wanted: str = "images as it takes them"
) -> list[Tensor]:
    """Return the tensors of a plain call of a model.

    Raises:
        ConfigError: If the call fails.
    """
    try:
        result = model(images.clone())  # which some models write into
    except Exception as error:
        raise ConfigError(
            f"the model does not accept {what}, float32 {list(images.shape)}: module "
            f"{innermost(model, error)!r} raises {error_words(error)}; give {wanted}, and a model "
            "in float32."
        ) from error
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


@torch.no_grad()
def check_faithful(model: nn.Module, graph: fx.GraphModule, images: Tensor) -> None:
    """Check that a graph computes the same as its model, on the example images and on others.

    Raises:
        ConfigError: If it does not.
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    drawn = torch.rand(_OTHERS, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    others = low + drawn * torch.where(high > low, high - low, 1)
    name = type(model).__name__
    for what, batch in (("the example images", images), ("random images", others)):
        (expected, *_) = returned(model, batch, what)
        try:
            ours, first, last = (graph(x.clone()) for x in (batch, batch[:1], batch[-1:]))
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be traced faithfully by torch.export: for {what} its graph fails "
                f"({error_words(error)}); {_WAY_OUT}"
            ) from error
        if not is_close(ours, expected):
            (again, *_) = returned(model, batch, what)
            if not is_close(again, expected):
                raise ConfigError(
                    f"{name} returns other logits for {what} when it is called again, by "
                    f"{gap(again, expected)}; does {name} depend on more than its images, as on "
                    "random numbers or on what it saw before?"
                )
            raise ConfigError(
                f"{name} cannot be traced faithfully by torch.export: for {what} its graph differs "
                f"by {gap(ours, expected)}{_first_wrong(model, graph, batch[:2])}; {_WAY_OUT}"
            )
        alone, together = torch.cat([first, last]), expected[[0, -1]]
        if not is_close(alone, together):
            raise ConfigError(
                f"an image's logits change by {gap(alone, together)} with the other images of its "
                f"batch, but a gate runs some of them at a time: does {name} normalise over a "
                "batch?"
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


class _Watcher(fx.Interpreter):
    """Runs a graph and collects the tensors that each module computes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: list[tuple[str, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - whatever the operator returns
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor):
            self.values.append((f"{n.meta['module']}.", value))
        return value


def _first_wrong(model: nn.Module, graph: fx.GraphModule, images: Tensor) -> str:
    """Name the first module whose output no operator of it in the graph computes, if any."""
    watcher = _Watcher(graph)
    watcher.run(images.clone())
    wrong: list[str] = []

    def compare(name: str, output: object) -> None:
        own = [value for path, value in watcher.values if path.startswith(f"{name}.")]
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
    return f", first in what module {wrong[0]!r} returns" if wrong else ""


def error_words(error: Exception) -> str:
    """Return an error's type and first line, without torch's advice on its own logs."""
    line = str(error).strip().partition("\n")[0].partition(" For more information")[0]
    said = " ".join(line.split()).rstrip(".!")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def innermost(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost module that raised an error, or the model's type."""
    # torch.export runs copies of modules that have the same attributes.
    names = {id(vars(module)): name for name, module in model.named_modules()}
    selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = [
        names[id(vars(m))] for m in selves if isinstance(m, nn.Module) and id(vars(m)) in names
    ]
    return (inside and inside[-1]) or type(model).__name__
