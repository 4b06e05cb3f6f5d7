"""What every run with a co-trained backbone has."""

from pathlib import Path

from dfs_rl.backbones import PRETRAINED_DIGITS
from dfs_rl.utils.io import read_json

WEIGHTS = "backbone.safetensors"


def assert_cotrained(run: Path) -> None:
    """Check that a run on the included backbone keeps it, and is compared on both."""
    shipped = (PRETRAINED_DIGITS / WEIGHTS).read_bytes()
    assert (run / "backbone-before" / WEIGHTS).read_bytes() == shipped
    assert (run / "backbone" / WEIGHTS).read_bytes() != shipped
    keys = {method["key"] for method in read_json(run / "summary.json")["methods"]}
    assert {"static_table_before", "cascade_before"} < keys
