"""A user's own model as a backbone: its residual blocks gated, everything else as it was."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_all

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.conversion.residual_search import Span, find
from dfs_rl.backbones.conversion.selection import (
    FractionalizeConfig,
    GatedPart,
    choose_parts,
    make_report,
)
from dfs_rl.backbones.conversion.submodules import Piece, make_swaps
from dfs_rl.backbones.conversion.tracing import Traced, arguments_of, name_of
from dfs_rl.backbones.probe import pool_grid
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.quantization.modules import FractionalLayer, calibrating

_MAP, _TOKENS = 4, 3
_CHANNELS_LAST = ("layer_norm", "linear")
_SHAPES = {
    *("reshape", "view", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("contiguous", "clone", "sym_size", "select", "slice", "expand", "alias", "detach", "chunk"),
    *("split", "unbind"),
}


class Fractionalized(Backbone):
    """A user's model whose residual blocks are gated layers; see ``Backbone``.

    It starts with the model's weights. Other norms and dropout run as in evaluation.

    Attributes:
        report: The gated layers and all other parts.
        has_class_token: Whether the head reads the first token.
        channels_last: Whether maps are ``[batch, height, width, channels]``.

    Raises:
        ConfigError: If nothing can be gated.
    """

    family = "fractionalized"
    config: FractionalizeConfig

    def __init__(
        self, traced: Traced, config: FractionalizeConfig, statistics: ChannelStatistics
    ) -> None:
        super().__init__(config, statistics, config.image_shape)
        findings = find(traced)
        parts = choose_parts(findings, traced, config)
        swaps = make_swaps(traced, parts, config)
        starts = [parts[0].span.start, *(part.span.end for part in parts)]

        def piece(start: fx.Node, end: fx.Node, part: GatedPart | None = None) -> Piece:
            return Piece(swaps, Span(start, end), part, fixed=config.stem_bits)

        self.before = piece(traced.images, starts[0])
        self.blocks = nn.ModuleList(
            piece(*ends, part) for ends, part in zip(pairwise(starts), parts, strict=True)
        )
        self.after = piece(starts[-1], traced.logits)
        self.has_class_token = _reads_first_token(starts[-1])
        self.channels_last = any(_is_channels_last(start) for start in starts[:-1])
        if config.signed:
            self._set_signs(config.signed)
        self.finish_making(signed=True)
        self.report = make_report(findings, traced, parts, self.costs)
        self._check_digest(_digest(self, traced))

    def parts(self, hidden: Tensor, *, grid: int | None = None) -> Tensor:
        """Pool an activation of any shape, float32 ``[batch, channels, parts]``.

        Maps are averaged over the parts of a grid, tokens over all positions; a class token is a
        part of its own.
        """
        if hidden.dim() == _MAP:
            maps = hidden.permute(0, 3, 1, 2) if self.channels_last else hidden
            return pool_grid(maps, grid=self.probe_grid if grid is None else grid)
        if hidden.dim() == _TOKENS and self.has_class_token:
            return torch.stack([hidden[:, 0], hidden[:, 1:].mean(dim=1)], dim=2).float()
        if hidden.dim() == _TOKENS:
            return hidden.mean(dim=1).float().unsqueeze(2)
        return hidden.flatten(2).float() if hidden.dim() > _MAP else hidden.float().unsqueeze(2)

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated layer.

        Raises:
            DataError: If the images have another shape; sizes in the model's code are constants.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise DataError(
                f"images are {list(images.shape)}, but the model was converted for "
                f"{list(self.image_shape)} each; convert it with an example_input of that size."
            )
        return cast("Tensor", self.before(self.normalise(images), self.stem_bits))

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return cast("Tensor", self.after(hidden, self.stem_bits)).float()

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Measure on images which inputs can be negative, and set all quantizer scales."""
        operators = self._operators()
        hooks = [module.register_forward_pre_hook(_measure_sign) for module in operators]
        was_training = self.training
        self.eval()
        with calibrating(operators):
            self.run(images, self.options[self.options.full])
        for hook in hooks:
            hook.remove()
        self.train(was_training)
        signed = tuple(module.quantizers.signed_input for module in operators)
        self.config = replace(self.config, signed=signed)

    def become(self, config: FractionalizeConfig, statistics: ChannelStatistics) -> None:
        """Take over the measured settings of a stored backbone of the same structure.

        Raises:
            ConfigError: If its structure or settings are others.
        """
        for name in ("bits", "layers", "granularity", "stem_bits", "per_channel"):
            ours, theirs = getattr(self.config, name), getattr(config, name)
            if ours != theirs:
                raise ConfigError(
                    f"{config.constructor} now makes a backbone whose {name} is {ours!r}; that of "
                    f"the stored one is {theirs!r}; restore its code, or fractionalize again."
                )
        digest = self.config.digest
        self.config, self.statistics = config, statistics
        self._check_digest(digest)
        self._set_signs(config.signed)

    def _operators(self) -> list[FractionalLayer]:
        pieces = [self.before, *self.blocks, self.after]
        return [m for piece in pieces for m in piece.modules() if isinstance(m, FractionalLayer)]

    def _set_signs(self, signed: Sequence[bool]) -> None:
        operators = self._operators()
        if len(operators) != len(signed):
            raise ConfigError(
                f"the model has {len(operators)} operators to quantize, but the description tells "
                f"the signs of {len(signed)}; it was made of another model."
            )
        for module, sign in zip(operators, signed, strict=True):
            module.quantizers.signed_input = sign

    def _check_digest(self, digest: str) -> None:
        if self.config.digest not in ("", digest):
            raise ConfigError(
                f"{self.config.constructor} now makes a model of another structure (digest "
                f"{digest}) than the one that was stored ({self.config.digest}); restore its code, "
                "or fractionalize the new model."
            )
        self.config = replace(self.config, digest=digest)


def _measure_sign(module: FractionalLayer, arguments: tuple[Tensor, ...]) -> None:
    low, high = arguments[0].aminmax()
    # Zeros alone leave the sign open.
    module.quantizers.signed_input = bool(low < 0) or bool(high <= 0)


def _reads_first_token(hidden: fx.Node) -> bool:
    """Return whether the head picks the first of its tokens."""
    if len(hidden.meta["val"].shape) != _TOKENS:
        return False
    seen, waiting = {hidden}, [hidden]
    while waiting:
        for user in waiting.pop().users:
            if name_of(user) == "select" and user.args[1:] == (1, 0):
                return True
            if user not in seen and user.op == "call_function":
                seen.add(user)
                waiting.append(user)
    return False


def _is_channels_last(hidden: fx.Node) -> bool:
    """Return whether operators on the last dimension read a map."""
    return len(hidden.meta["val"].shape) == _MAP and any(
        name_of(user) in _CHANNELS_LAST for user in hidden.users
    )


def _digest(backbone: Fractionalized, traced: Traced) -> str:
    """Return a short digest of a model's structure, without its weights."""
    shapes = sorted((name, tuple(t.shape)) for name, t in backbone.state_dict().items())
    operators = [
        (name_of(node), _settings_of(node))
        for node in traced.nodes
        if node.op == "call_function" and node.meta["flows"] and name_of(node) not in _SHAPES
    ]
    text = repr((shapes, operators, backbone.costs.layer_macs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings_of(node: fx.Node) -> list[tuple[str, object]]:
    """Return the numbers and words among an operator's arguments, as the slope of its ReLU."""
    return [
        (name, value)
        for name, value in sorted(arguments_of(node).items())
        if isinstance(value, (int, float, str)) or (value and tree_all(_is_number, value))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))
