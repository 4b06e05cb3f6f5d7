"""Quick runs in tests: a module that imports a fixture of this one has it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from dfs_rl.agents import pretraining
from dfs_rl.evaluation.baselines import methods
from dfs_rl.experiments import session

TABLES = 30


@pytest.fixture(autouse=True, scope="module")
def quick_runs() -> Iterator[None]:
    """Limit the tables that evaluations score, and draw nothing at validation."""
    search = methods.search_static_table

    def short(*arguments, **settings):
        limits = settings["search"]
        few = replace(limits, tables=min(limits.tables, TABLES))
        return search(*arguments, **(settings | {"search": few}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "search_static_table", short)
        patch.setattr(session, "validation_pictures", lambda *_: {})
        yield


@pytest.fixture(autouse=True, scope="module")
def few_images() -> Iterator[None]:
    """Clone gates from 512 images, which are enough for small backbones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "IMAGES", 512)
        yield
