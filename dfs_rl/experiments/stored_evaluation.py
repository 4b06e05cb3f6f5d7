"""Stored evaluations: their files, and the identity by which one is used again."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from dfs_rl.costs import CostTable
from dfs_rl.costs.latency_profile import LatencyProfile
from dfs_rl.errors import ConfigError, RunFolderError
from dfs_rl.evaluation.summary import FORMAT, EvaluationSummary
from dfs_rl.experiments.config import EvaluateConfig
from dfs_rl.gating.loading import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.io import read_json


@dataclass(frozen=True)
class Evaluation:
    """Figures of a gate and its baselines.

    Attributes:
        summary: All figures.
        path: File of the summary.
        stored: True if the figures were read from an earlier evaluation.
    """

    summary: EvaluationSummary = field(repr=False)
    path: Path
    stored: bool = field(default=False, repr=False)

    @property
    def figure_prefix(self) -> str:
        """File name prefix of the figures."""
        parts = self.path.stem.split("-", 1)[1:]
        return "".join(f"{part}-" for part in parts)

    @property
    def results_path(self) -> Path:
        """File with the per-image results of every method."""
        name = self.path.name.replace("summary", "outcomes")
        return self.path.with_name(name).with_suffix(".safetensors")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method, the gate first, with the columns of ``MethodSummary``.

        ``difference``, ``low`` and ``high`` are accuracy of the gate minus that of the method in
        points, with the bounds of its 95 % interval over images; ``outcome`` judges it.
        """
        methods = pd.DataFrame([config_to_dict(method) for method in self.summary.methods])
        methods = methods.drop(columns=["class_accuracy", "exit_shares"])
        if not self.summary.comparisons:
            return methods
        compared = pd.DataFrame([config_to_dict(one) for one in self.summary.comparisons])
        return methods.merge(compared.drop(columns=["label", "role"]), on="key", how="left")


def name_parts(config: EvaluateConfig, costs: CostTable, given: LatencyProfile | None) -> list[str]:
    """Return the parts of file names that tell stream, setting of the gate, and given times."""
    parts: list[str] = [] if config.corruptions is None else [config.corruptions]
    if config.budget is not None:
        percent, full = config.budget, costs.total_cost
        in_words = f"{percent:g}" if costs.profile is None else f"{percent * full / 100.0:g}-ms"
        parts.append(f"at-{in_words}")
    if config.max_accuracy_drop is not None:
        parts.append(f"drop-{config.max_accuracy_drop:g}")
    if config.precision != EvaluateConfig.precision:
        parts.append(config.precision)
    return parts if given is None else [*parts, f"measured-{given.runtime}"]


def stored_evaluation(path: Path, identity: str) -> Evaluation | None:
    """Return the stored evaluation at a path, None without one of that identity."""
    try:
        record = read_json(path) if path.is_file() else None
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            return None
        summary = config_from_dict(record, EvaluationSummary, str(path))
    except (ConfigError, RunFolderError):  # damaged, treated as missing
        return None
    found = Evaluation(summary, path, stored=True)
    return found if summary.identity == identity and found.results_path.is_file() else None


def identity_of(
    config: EvaluateConfig,
    fingerprint: str,
    profile: LatencyProfile | None,
    baselines: Iterable[str],
) -> str:
    """Return a digest of all inputs that determine the results; it ends with ``model_digest``."""
    drop = None if config.max_accuracy_drop is None else f"drop {config.max_accuracy_drop}"
    settings = config.split, config.precision, config.search, config.budget
    given = [fingerprint, *settings, drop, profile, *baselines]
    digest = hashlib.sha256(" ".join(str(one) for one in given if one is not None).encode())
    return f"{digest.hexdigest()[:16]}-{model_digest(config.run)}"


def model_digest(run: Path) -> str:
    """Return a digest of a run's backbones and gate, with which summaries identify them."""
    digest = hashlib.sha256()
    for part in (BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER):
        for path in sorted((run / part).glob("*")):
            if path.suffix in (".json", ".safetensors") and not path.name.startswith("."):
                digest.update(f" {part}/{path.name} {path.stat().st_size} ".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
