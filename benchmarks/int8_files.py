"""Answers of exported int8 files against those of the network, at each uniform option.

    python benchmarks/int8_files.py
    python benchmarks/int8_files.py --backbone runs/net/backbone --dataset mnist5k

The format ``onnx-int8`` rounds what layers of up to 8 bit add to the shortcut. The columns are the
accuracy on test of the network and of its file, and the share of images with the same prediction.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro

import dfs_rl
from dfs_rl.backbones import PRETRAINED_DIGITS, load_backbone
from dfs_rl.data import load_dataset
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import GatedModel
from dfs_rl.runtime import OnnxModel


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        backbone: Folder of a backbone; the included digits network by default.
        dataset: Its data set.
    """

    backbone: Path = PRETRAINED_DIGITS
    dataset: str = "digits"


@torch.no_grad()
def main(settings: Settings) -> None:
    """Export the network at each uniform option, and compare answers."""
    test = load_dataset(settings.dataset).test
    backbone = load_backbone(settings.backbone).to_inference()
    print(f"bits  load  onnx-int8  same, percent of {len(test)} test images")
    for option, bits in enumerate(backbone.options):
        if bits == 0:
            continue
        model = GatedModel(backbone, TableGate([option] * backbone.costs.n_layers))
        with TemporaryDirectory() as folder:
            path = dfs_rl.export(model, Path(folder, "table.onnx"), format="onnx-int8")
            found = torch.from_numpy(OnnxModel(path)(test.images.numpy()).logits).argmax(dim=1)
        expected = model(test.images)[0].argmax(dim=1)
        columns = (expected == test.labels, found == test.labels, found == expected)
        print(f"{bits:4}", *(f"{100 * column.float().mean():8.2f}" for column in columns))


if __name__ == "__main__":
    main(tyro.cli(Settings))
