"""Small image folder on which any command can train."""

from pathlib import Path

import torch
from PIL import Image

PER_CLASS = 110


def write_image_folder(folder: Path, *, seed: int = 0) -> Path:
    """Write 8 x 8 grey images of two classes, dark and light, and return ``folder``."""
    generator = torch.Generator().manual_seed(seed)
    for label, least in (("dark", 0), ("light", 150)):
        (folder / label).mkdir(parents=True)
        for i in range(PER_CLASS):
            level = torch.randint(100, (8, 8), dtype=torch.uint8, generator=generator)
            Image.fromarray((level + least).numpy()).save(folder / label / f"{i}.png")
    return folder
