"""Work of the commands ``export`` and ``profile``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch

from dfs_rl.backbones import PRETRAINED_DIGITS, Backbone, InferenceBackbone, load_backbone
from dfs_rl.backbones.footprint import forward_bytes
from dfs_rl.costs.latency_profile import LatencyProfile, Runtime, difference, read_latency_profile
from dfs_rl.errors import ConfigError, DfsRlError, wrong_type
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.api import TrainedGate
from dfs_rl.experiments.deployment_config import ExportConfig, ProfileConfig
from dfs_rl.experiments.gate_training import make_gate
from dfs_rl.gating.loading import GATE_FOLDER, load
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LearnedGate, computed_macs
from dfs_rl.reporting.tables import latency_text
from dfs_rl.runtime.export import check_extra, export
from dfs_rl.runtime.latency import measure_latency, measured_setup
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.device import check_memory, resolve_device, set_threads
from dfs_rl.utils.io import check_writable, write_json
from dfs_rl.utils.logging import print_result, print_status
from dfs_rl.utils.trusted_import import trusting


def run_export(invocation: Invocation[ExportConfig]) -> None:
    """Export a gate and its network."""
    config = invocation.config
    out = config.out or Path("gate-parts" if config.format == "torch" else "gate.onnx")
    check_writable(out)
    model = load(
        config.run,
        budget=config.budget,
        budget_unit=config.budget_unit,
        max_accuracy_drop=config.max_accuracy_drop,
    )
    path = export(model, out, format=config.format)
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    print_status(f"Written to {path}, {size / 2**20:.1f} MiB.")
    if config.format != "torch":
        print_status(
            "Run it with dfs_rl.runtime.OnnxModel, or in an onnxruntime session of your own with "
            "session.x64quantprecision set to 1 where the CPU lacks 8-bit dot products (VNNI, "
            "AMX): without it sums of 8-bit products can overflow there."
        )


def run_profile(invocation: Invocation[ProfileConfig]) -> None:
    """Measure a network, write its profile and print it."""
    config = invocation.config
    result = _profile(config.source, config)
    print_result(latency_text(result, str(config.source or "The included digits network")))
    print_status(f"Written to {config.out}.")


def profile(
    network: Backbone | GatedModel | TrainedGate | str | Path | None = None,
    path: str | Path | None = None,
    *,
    runtime: Runtime = "torch",
    batch_sizes: Sequence[int] = (1, 64),
    threads: int = 1,
    device: str | torch.device = "cpu",
    calls: int = 60,
    trust_code: bool = False,
) -> LatencyProfile:
    """Measure stem, gated layers at every bit option, exits, head and gate of a network.

    The gate is the network's own; without a learned one it is the default gate of ``train_agent``,
    untrained.

    Args:
        network: Backbone, gated network, trained gate, or the folder of one of them; ``None`` for
            the included digits network.
        path: File to create, or to replace if it is a profile of the same network, measured in the
            same way; ``None`` for no file.
        runtime: ``"torch"``, or a format of ``export``, which needs the extra ``export``.
        batch_sizes: Images per call, all at the same options.
        threads: Number of CPU threads.
        device: Device that runs the network.
        calls: Mean number of calls of each option at each layer, at least 20; deep networks get
            more.
        trust_code: True to import the constructor that a folder names, see ``load``; that of a
            ``TrainedGate`` is trusted.

    Returns:
        The profile, in milliseconds per image.

    Raises:
        ConfigError: If a value is not allowed, the extra is missing, or ``path`` is another file.
        CheckpointError: If the folder has no backbone.
    """
    config = ProfileConfig(
        out=Path("profile.json" if path is None else path),
        runtime=runtime,
        batch_sizes=tuple(batch_sizes) if isinstance(batch_sizes, Iterable) else batch_sizes,
        threads=threads,
        device=str(device),
        calls=calls,
    )
    if isinstance(network, TrainedGate):
        network, trust_code = network.path, True
    before = torch.get_num_threads()
    try:
        with trusting(code=trust_code):
            return _profile(network, config, writes=path is not None)
    finally:
        torch.set_num_threads(before)


def _profile(
    network: Backbone | GatedModel | str | Path | None,
    config: ProfileConfig,
    *,
    writes: bool = True,
) -> LatencyProfile:
    """Measure a network and write its profile."""
    earlier = _earlier_profile(config.out) if writes else None
    model = _model(network, device := resolve_device(config.device))
    if earlier is not None:
        _check_alike(earlier, config, model)
    if writes:
        check_writable(config.out)
    if config.runtime != "torch":
        check_extra()
    set_threads(config.threads)
    largest = max(config.batch_sizes)
    needs = {f"batch_sizes has {largest}": float(largest * forward_bytes(model.backbone))}
    check_memory(needs, device)
    result = measure_latency(
        model,
        runtime=config.runtime,
        batch_sizes=config.batch_sizes,
        threads=config.threads,
        calls=config.calls,
    )
    if writes:
        write_json(config.out, config_to_dict(result))
    return result


def _earlier_profile(path: Path) -> LatencyProfile | None:
    """Return the profile in a file, which must be one, or None where there is no file."""
    if not path.exists():
        return None
    try:
        return read_latency_profile(path)
    except DfsRlError as error:
        raise ConfigError(
            f"out is {path}, which is there and is no latency profile; give another file."
        ) from error


def _check_alike(earlier: LatencyProfile, config: ProfileConfig, model: GatedModel) -> None:
    """Check that an earlier profile is of the same network, machine and settings."""
    setup = measured_setup(model, runtime=config.runtime, threads=config.threads)
    setup |= {"bits": tuple(model.backbone.options), "exits": model.backbone.costs.exits_after}
    for name, value in setup.items():
        if (kept := getattr(earlier, name)) != value:
            raise ConfigError(
                f"out is {config.out}, a profile of something else: {difference(name, kept, value)}"
                "; give another file, or remove it."
            )
    macs = computed_macs(cast("LearnedGate", model.gate), model.backbone.costs)
    if macs != earlier.gate_macs:
        print_status(
            f"{config.out} measures a gate of {earlier.gate_macs:,.0f} MACs and is replaced by the "
            f"profile of one of {macs:,.0f}."
        )


def _model(network: Backbone | GatedModel | str | Path | None, device: torch.device) -> GatedModel:
    """Return a network in its inference form with a learned gate."""
    if isinstance(network, str | Path) and (Path(network) / GATE_FOLDER).is_dir():
        network = load(network)
    elif network is None or isinstance(network, str | Path):
        network = load_backbone(PRETRAINED_DIGITS if network is None else network)
    if not isinstance(network, Backbone | InferenceBackbone | GatedModel):
        raise wrong_type(
            "network", network, "are a backbone, a gated network, a trained gate, a folder and None"
        )
    gated = network if isinstance(network, GatedModel) else None
    backbone = network.backbone if isinstance(network, GatedModel) else network
    if isinstance(backbone, Backbone):
        backbone = backbone.to_inference()
    if gated is not None and isinstance(gated.gate, LearnedGate):
        model = GatedModel(backbone, gated.gate, budget=gated.budget)
    else:
        model = GatedModel(backbone, make_gate(TrainAgentConfig(), backbone))
    return model.to(device).eval()
