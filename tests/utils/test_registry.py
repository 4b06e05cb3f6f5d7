"""Registries: names, lazy values, duplicates, errors, and plugins."""

from importlib.metadata import EntryPoint
from typing import Annotated

import pytest

from dfs_rl.errors import ConfigError
from dfs_rl.utils import registry as registry_module
from dfs_rl.utils.config import configuration
from dfs_rl.utils.registry import PLUGIN_GROUP, Registry, load_plugins

COLOURS: Registry[object] = Registry("colour")
COLOURS.add("red", 1)
COLOURS.add("path", "pathlib:Path")


@configuration
class Painting:
    colour: Annotated[str, COLOURS] = "red"
    others: tuple[Annotated[str, COLOURS], ...] = ()


def test_a_lazy_value_is_imported_on_first_use() -> None:
    assert COLOURS["path"].__name__ == "Path"
    assert COLOURS.names() == ("red", "path")


def test_a_duplicate_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour 'red' is registered already"):
        COLOURS.register("red")(2)


def test_an_unknown_name_lists_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match="paint is 'pink'; allowed is one of 'red', 'path'"):
        COLOURS.find("pink", setting="paint")


@pytest.mark.parametrize("values", [{"colour": "pink"}, {"others": ("red", "pink")}])
def test_a_setting_accepts_only_names(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="allowed is one of 'red', 'path'"):
        Painting(**values)


def test_a_setting_accepts_names_added_later() -> None:
    later: Registry[int] = Registry("colour")

    @configuration
    class Sketch:
        colour: Annotated[str, later] = "blue"

    later.add("green", 3)
    assert Sketch(colour="green").colour == "green"


def test_a_broken_plugin_names_its_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "module_that_is_missing", PLUGIN_GROUP)
    monkeypatch.setattr(registry_module, "_loaded", [])
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])
    for _ in range(2):  # the error does not disappear
        with pytest.raises(ConfigError, match=r"plugin 'mine' of the distribution .* cannot be"):
            load_plugins()
