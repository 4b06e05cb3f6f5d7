"""Quick runs in tests: a module that imports a fixture of this one has it."""

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dfs_rl.agents import pretraining
from dfs_rl.evaluation.baselines import methods
from dfs_rl.experiments import evaluation, session
from dfs_rl.reporting import style

TABLES = 30
CLONING_STEPS = 60


def blank_png(figure: Figure) -> bytes:
    """Return a white picture of a figure's size, which takes a tenth of the time."""
    width, height = (int(side * style.DPI) for side in figure.get_size_inches())
    buffer = io.BytesIO()
    Image.new("L", (width, height), 255).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True, scope="module")
def quick_runs() -> Iterator[None]:
    """Limit the search for tables, draw no images, and render no figure."""
    search = methods.search_static_table

    def short(*arguments, **settings):
        limits = settings["search"]
        few = replace(limits, tables=min(limits.tables, TABLES))
        return search(*arguments, **(settings | {"search": few}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "search_static_table", short)
        patch.setattr(session, "validation_pictures", lambda *_: {})
        patch.setattr(evaluation, "images_plot", lambda *_: Figure())
        patch.setattr(style, "to_png", blank_png)
        yield


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """Clone gates in few steps, where a test asserts nothing of what they choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "_STEPS", CLONING_STEPS)
        yield


@pytest.fixture(autouse=True, scope="module")
def few_images() -> Iterator[None]:
    """Clone gates from 512 images, which are enough for small backbones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "IMAGES", 512)
        yield
