"""Parts of a network as programs of ``torch.export``.

A gated network has no single program: ``torch.export`` takes no choice that depends on data. Its
parts have one each, and whoever runs them chooses in between.
"""

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import GatedBackbone, WithExits
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import InferenceConv2d

SUFFIX = ".pt2"
_BATCH = 2  # of the traces; the batch stays open


class _Part(nn.Module):
    """A function as a module; the tensors that it uses become constants of the program."""

    def __init__(self, function: Callable[..., Tensor], *rest: int) -> None:
        super().__init__()
        self._function = (function,)  # a tuple hides modules, whose unused weights would be stored
        self._rest = rest

    def forward(self, x: Tensor) -> Tensor:
        """Call the function with a tensor and the rest of its arguments."""
        return self._function[0](x, *self._rest)


def part_files(backbone: GatedBackbone) -> dict[str, object]:
    """Return the file names of all parts of a network, as its index lists them.

    ``layers`` has for each gated layer a file by bit width, ``exits`` by number of gated layers
    before the exit.
    """
    layers = [
        {str(bits): f"layer_{layer}_at_{bits}{SUFFIX}" for bits in backbone.options}
        for layer in range(backbone.costs.n_layers)
    ]
    exits = {str(after): f"exit_{after}{SUFFIX}" for after in backbone.costs.exits_after}
    return {"stem": f"stem{SUFFIX}", "layers": layers, "exits": exits, "head": f"head{SUFFIX}"}


@torch.no_grad()
def programs(backbone: GatedBackbone) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the file of every part, see ``part_files``.

    Args:
        backbone: A network in inference form.

    Raises:
        ConfigError: If ``torch.export`` cannot trace a part.
    """
    copied = copy.deepcopy(backbone)
    assert isinstance(copied, nn.Module)
    for module in copied.cpu().modules():
        if isinstance(module, InferenceConv2d):
            module.may_use_integers = False  # packed for this CPU, with the same result
    network = cast("GatedBackbone", copied)
    hidden = torch.zeros(_BATCH, *network.image_shape)
    yield f"stem{SUFFIX}", _program("stem", hidden, network.stem)
    hidden = network.stem(hidden)
    for layer, run in enumerate(network.layers):
        if layer in network.costs.exits_after:
            name, answer = f"exit_{layer}", cast("WithExits", network).answer
            yield name + SUFFIX, _program(name, hidden, answer, layer)
        for bits in network.options:
            name = f"layer_{layer}_at_{bits}"
            yield name + SUFFIX, _program(name, hidden, run, bits)
        hidden = run(hidden, network.options[-1])
    yield f"head{SUFFIX}", _program("head", hidden, network.head)


def _program(name: str, example: Tensor, function: Callable[..., Tensor], *rest: int) -> bytes:
    """Return the stored program of a part for any batch."""
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about its own storage
        try:
            part = _Part(function, *rest).eval()
            torch.export.save(torch.export.export(part, (example,), dynamic_shapes=shapes), content)
        except Exception as error:  # torch has many kinds
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"torch.export cannot trace {name}: {reason}") from error
    return content.getvalue()
