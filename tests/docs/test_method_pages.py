"""Names and defaults on the pages of the methods are those of the code."""

import re

import pytest

from dfs_rl.agents.hyperparameters import ALGORITHM_CONFIGS
from dfs_rl.agents.methods import METHODS
from dfs_rl.agents.static.methods import STATIC_METHODS
from dfs_rl.agents.supervised.config import SUPERVISED_METHODS, BlockDropConfig, SkipNetConfig
from tests.helpers.pages import DOCS, names, read, table, tables

INDEX = read("methods/index.md")
BLOCKS = {"skipnet": SkipNetConfig, "blockdrop": BlockDropConfig}


def test_the_index_has_every_method():
    shown = {names(row["name"])[0]: row for row in table(INDEX, "name", "learns by")}
    built_in = {name for name in METHODS if not name.startswith("toy_")}
    assert set(shown) == built_in | {"cascade"}
    for name, row in shown.items():
        (command,) = names(row["command"])
        if name in METHODS:
            method = METHODS[name]
            expected = f"{method.command} --{method.setting} {name.removeprefix(method.prefix)}"
            assert command == expected
        assert (DOCS / "methods" / re.search(r"\((.*)\)", row["page"])[1]).is_file()


@pytest.mark.parametrize(
    ("page", "column", "registry"),
    [("sb3", "`--algo`", ALGORITHM_CONFIGS), ("haq", "`--method`", STATIC_METHODS)],
)
def test_a_page_of_several_methods_has_them_all(page, column, registry):
    (rows,) = [rows for rows in tables(read(f"methods/{page}.md")) if column in rows[0]]
    assert {names(row[column])[0] for row in rows} == set(registry)


def number(text: str) -> float:
    return float(re.match(r"[\d.]+", text)[0])


@pytest.mark.parametrize(
    ("page", "n"), [("gumbel", 8), ("dfs", 2), ("skipnet", 6), ("blockdrop", 7)]
)
def test_defaults_of_supervised_methods(page, n):
    blocks = {"training": SUPERVISED_METHODS[page]} | BLOCKS
    checked = 0
    for rows in tables(read(f"methods/{page}.md")):
        first = next(iter(rows[0]))
        prefix = "training." if "--training.*" in first else ""
        for row in rows:
            values = row.get("default", "").split(", ")
            for field, value in zip(names(row[first]), values, strict=False):
                block, _, setting = (prefix + field.removeprefix("--")).rpartition(".")
                if block:
                    stored = getattr(blocks[block](), setting.replace("-", "_"))
                    assert stored == number(value), field
                    checked += 1
    assert checked == n


def test_defaults_of_algorithms():
    checked = 0
    for row in table(read("methods/sb3.md"), "algorithms", "default"):
        (setting,) = [key for key in row if key.startswith("setting")]
        for algorithm, config_type in ALGORITHM_CONFIGS.items():
            config = config_type()
            fields = names(row[setting])
            values = row["default"].split(", ")
            listed = re.findall(r"\w+", row["algorithms"])
            for field, value in zip(fields, values, strict=False):
                stored = getattr(config, field, None)
                if algorithm in listed and isinstance(stored, int | float):
                    assert stored == number(value), (algorithm, field)
                    checked += 1
    assert checked == 19
