"""Conversion of a user's model: by ``fractionalize``, by its constructor, and from storage."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.conversion.backbone import Fractionalized
from dfs_rl.backbones.conversion.faithful import gap, is_close
from dfs_rl.backbones.conversion.selection import CONVERSION_BITS, FractionalizeConfig, Granularity
from dfs_rl.backbones.conversion.tracing import Traced, name_of, trace
from dfs_rl.backbones.registry import register_family
from dfs_rl.backbones.storage import with_shared_names
from dfs_rl.costs import FULL, SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.utils.checkpoint import check_finite, load_tensors
from dfs_rl.utils.trusted_import import call_constructor, trust_constructor

_IMAGE_RANK = 4
_EXAMPLES = 64
_MOST_SHOWN, _LONGEST = 3, 150  # of torch's reasons, and characters of each
_ROUNDING = 1e-3
"""Rounding error of a sum of probabilities."""


def fractionalize(
    model: nn.Module,
    example_input: Tensor,
    bits: Sequence[int] = CONVERSION_BITS,
    *,
    layers: Sequence[str] | None = None,
    granularity: Granularity = "block",
    stem_bits: int = FULL,
    per_channel: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    constructor: str | None = None,
) -> Fractionalized:
    """Convert a model into a backbone whose gated layers are its residual blocks.

    At 32 bit everywhere it computes the same as the model in evaluation mode. Lower bits need
    calibration, see ``calibrate``.

    Args:
        model: Maps normalised images to logits. It stays as it is.
        example_input: Normalised images, float ``[batch, c, h, w]``; real ones show which
            activations can be negative.
        bits: Bit options of every gated layer; 0 needs a shortcut around each of them.
        layers: Names of the modules to gate instead of all residual blocks.
        granularity: ``"block"`` gates attention and MLP of a transformer block together,
            ``"branch"`` each by itself.
        stem_bits: Precision of everything that is never gated; 32 leaves it as it was.
        per_channel: One weight scale per output channel instead of one per layer.
        mean: Mean of the images' channels, which the model expects subtracted, in [0, 1] units; by
            default 0.
        std: Standard deviation, by which it expects them divided; by default 1.
        constructor: ``module:function`` that makes this model, or this backbone, again; needed to
            store it.

    Returns:
        The backbone, in evaluation mode; it takes uint8 images. ``print(backbone.report)`` lists
        the gated layers.

    Raises:
        ConfigError: If the model cannot be traced or gated, or a setting is out of range.
        DataError: If ``mean`` is not finite, or ``std`` not positive.
    """
    _check_given(model, example_input)
    channels = example_input.shape[1]
    statistics = ChannelStatistics(
        _per_channel("mean", (0.0,) * channels if mean is None else mean, channels),
        _per_channel("std", (1.0,) * channels if std is None else std, channels),
    )
    if constructor is not None:
        trust_constructor(constructor)
    example = example_input[:_EXAMPLES].detach().float().cpu()
    traced = trace(model, example)
    _check_logits(traced, type(model).__name__)
    config = FractionalizeConfig(
        image_shape=cast("tuple[int, int, int]", tuple(example.shape[1:])),
        n_classes=traced.answer.shape[1],
        bits=_as_tuple(bits),
        layers=_as_tuple(layers),
        granularity=granularity,
        stem_bits=stem_bits,
        per_channel=per_channel,
        constructor=constructor,
    )
    backbone = full = Fractionalized(traced, config, statistics).eval()
    if stem_bits != FULL or FULL not in config.bits:  # something of it is always quantized
        unquantized = (SKIP, FULL) if SKIP in config.bits else (FULL,)
        config = replace(config, bits=unquantized, stem_bits=FULL)
        full = Fractionalized(traced, config, statistics).eval()
    pixels = example * backbone.image_std + backbone.image_mean
    backbone.measure(pixels)
    with torch.no_grad():
        ours = full.run(pixels, FULL)
    if not is_close(ours, traced.answer):
        raise ConfigError(
            f"{type(model).__name__} cannot be cut into gated layers faithfully: their logits "
            f"differ from its own by {gap(ours, traced.answer)}; name other modules with "
            "layers=[...]."
        )
    return backbone


def remake(config: FractionalizeConfig, statistics: ChannelStatistics) -> Fractionalized:
    """Make a stored backbone's structure again; its weights are those of the constructor.

    Raises:
        ConfigError: If the constructor is not trusted, cannot be imported, or has changed.
    """
    if config.constructor is None:
        raise ConfigError("the backbone names no constructor, so nothing can make it again.")
    with torch.device("cpu"):
        made = made_by(config.constructor)
        if not isinstance(made, Backbone):
            return Fractionalized(
                trace(made, torch.zeros(2, *config.image_shape)), config, statistics
            )
        if not isinstance(made, Fractionalized):
            raise ConfigError(
                f"{config.constructor} now makes a backbone of family {made.family!r}; it made one "
                "by fractionalize."
            )
        made.become(config, statistics)
        return made


register_family(Fractionalized.family, FractionalizeConfig, remake)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a model's weights from a safetensors file or a state dict of ``torch.save``.

    Neither executes code.

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
    """
    try:
        if path.suffix == ".safetensors":
            state: object = load_tensors(path, ours=False)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as weights alone ({type(error).__name__}); save "
            "model.state_dict()."
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    try:
        if isinstance(state, Mapping):
            state = with_shared_names(model, state, path)
        model.load_state_dict(cast("Mapping[str, Tensor]", state))
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).splitlines()[1:] or [str(error)]
        reasons = [textwrap.shorten(line, _LONGEST, placeholder=" ...") for line in lines]
        raise CheckpointError(
            f"the weights in {path} do not fit the model: {' '.join(reasons[:_MOST_SHOWN])}"
        ) from error
    check_finite(model, path)


def made_by(name: str) -> nn.Module:
    """Return the model or finished backbone that a user's constructor makes.

    Raises:
        ConfigError: If it is not trusted, cannot be imported, or returns something else.
    """
    made = call_constructor(name)
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"constructor {name} returns a {type(made).__name__}; it must return a torch.nn.Module "
            "or a backbone."
        )
    return made


def _check_given(model: object, example_input: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is a {type(model).__name__}; give the network itself, a torch.nn.Module."
        )
    if not isinstance(example_input, Tensor):
        raise ConfigError(
            f"example_input is a {type(example_input).__name__}; give normalised images as a "
            "torch.Tensor."
        )
    if example_input.dim() != _IMAGE_RANK or not example_input.is_floating_point():
        raise ConfigError(
            f"example_input is {example_input.dtype} {list(example_input.shape)}; give normalised "
            "images, float [batch, channels, height, width]."
        )
    if not example_input.numel() or not bool(example_input.isfinite().all()):
        what = "numbers that are not finite" if example_input.numel() else "no images"
        raise ConfigError(
            f"example_input, {list(example_input.shape)}, has {what}; give some normalised images."
        )


def _as_tuple(values: Any) -> Any:  # noqa: ANN401 - the configuration checks it
    listed = isinstance(values, Iterable) and not isinstance(values, str)
    return tuple(values) if listed else values


def _per_channel(name: str, values: Iterable[float], channels: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, RuntimeError):
        numbers = ()
    if len(numbers) != channels:
        given = " ".join(str(values).split())
        raise ConfigError(
            f"{name} is {given}; give {channels} numbers, one for each channel of example_input."
        )
    return numbers


def _check_logits(traced: Traced, name: str) -> None:
    """Check that a model returns logits, not probabilities, whose softmax is almost uniform.

    Logarithms of probabilities are logits.
    """
    answer = traced.answer
    if not bool(answer.isfinite().all()):
        raise ConfigError(
            f"{name} returns numbers that are not finite for the example images; are its weights?"
        )
    adds_up = bool((answer >= 0).all()) and bool(((answer.sum(1) - 1).abs() < _ROUNDING).all())
    if adds_up or name_of(traced.logits) == "sigmoid":
        raise ConfigError(
            f"{name} returns probabilities, but gates learn from logits; leave out the softmax or "
            "sigmoid that it ends in, or return their logarithm."
        )
