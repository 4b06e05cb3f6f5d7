"""Time and accuracy of an exported gate, against full precision and static int8 networks.

    python benchmarks/shipped_gate.py runs/timed --dataset mnist5k --budget 0.25 --budget-unit ms

Every test image runs alone in onnxruntime on one thread, in four networks that take turns: the gate
as ``onnx-int8``, all layers at 32 bit, all layers at 8 bit as ``onnx-int8``, and onnxruntime's own
static quantization of the network at 32 bit, calibrated on the agent split. The fastest of four
calls counts, since other processes only add time.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
import onnxruntime
import tyro
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

import dfs_rl
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel

CALLS = 4
CALIBRATED = 300
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        run: Run of a gate whose backbone has 8 and 32 bit.
        dataset: Its data set.
        budget: Budget that a gate for all budgets is set to.
        budget_unit: Unit of the budget.
    """

    run: Annotated[Path, tyro.conf.Positional]
    dataset: str = "digits"
    budget: float | None = None
    budget_unit: Literal["percent", "ms"] = "percent"


class Images(CalibrationDataReader):
    """Images for onnxruntime's calibration."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        """Return the next image."""
        return next(self._feeds, None)


def feeds_of(images: np.ndarray) -> list[Feeds]:
    """Return each image of uint8 ``[n, c, h, w]`` as the input of a session."""
    return [{"images": image[None].astype(np.float32) / 255} for image in images]


def make_files(settings: Settings, data: Dataset, folder: Path) -> dict[str, Path]:
    """Export the gate and the static networks."""
    gated = dfs_rl.load(settings.run, budget=settings.budget, budget_unit=settings.budget_unit)
    backbone = gated.backbone
    eight, full = (
        GatedModel(backbone, TableGate([list(backbone.options).index(b)] * backbone.costs.n_layers))
        for b in (8, 32)
    )
    files = {
        "gate": dfs_rl.export(gated, folder / "gate.onnx", format="onnx-int8"),
        "full precision": dfs_rl.export(full, folder / "full.onnx"),
        "all layers at 8 bit": dfs_rl.export(eight, folder / "eight.onnx", format="onnx-int8"),
        "onnxruntime's int8": folder / "static.onnx",
    }
    images = Images(feeds_of(data.agent.images[:CALIBRATED].numpy()))
    quantize_static(
        files["full precision"],
        files["onnxruntime's int8"],
        images,
        activation_type=QuantType.QUInt8,
        per_channel=True,
    )
    return files


def main(settings: Settings) -> None:
    """Measure, and print time and accuracy."""
    data = load_dataset(settings.dataset)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        files = make_files(settings, data, Path(folder))
        sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in files.items()
        }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    correct: dict[str, list[bool]] = {name: [] for name in sessions}
    labels = data.test.labels.tolist()
    for feeds, label in zip(feeds_of(data.test.images.numpy()), labels, strict=True):
        for name, session in sessions.items():
            calls = []
            for _ in range(CALLS):
                start = time.perf_counter()
                logits = session.run(None, feeds)[0]
                calls.append(1e3 * (time.perf_counter() - start))
            times[name].append(min(calls))
            correct[name].append(int(logits.argmax()) == label)
    whole = np.mean(times["full precision"])
    print(f"{len(labels)} test images; ms per image, share of full precision, accuracy in percent")
    for name in sessions:
        mean = np.mean(times[name])
        print(f"{name:20} {mean:.3f} {mean / whole:.2f} {100 * np.mean(correct[name]):.2f}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
