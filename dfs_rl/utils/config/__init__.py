"""Strict YAML for frozen dataclasses: a file is checked in full, or refused in one sentence."""

from dfs_rl.utils.config.ranges import (
    SEEDS,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    PositiveShare,
    Seed,
    Share,
)
from dfs_rl.utils.config.records import (
    check_values,
    config_from_dict,
    config_to_dict,
    fields_from_dict,
    flat_settings,
    load_config,
    required_fields,
    save_config,
)
from dfs_rl.utils.config.yaml_core import YamlSettings, dump_yaml, parse_value, read_yaml

__all__ = [
    "SEEDS",
    "Count",
    "CountOrZero",
    "Positive",
    "PositiveOrZero",
    "PositiveShare",
    "Seed",
    "Share",
    "YamlSettings",
    "check_values",
    "config_from_dict",
    "config_to_dict",
    "dump_yaml",
    "fields_from_dict",
    "flat_settings",
    "load_config",
    "parse_value",
    "read_yaml",
    "required_fields",
    "save_config",
]
