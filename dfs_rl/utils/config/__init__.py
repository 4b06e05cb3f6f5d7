"""Configurations: frozen dataclasses with strict checks and YAML files."""

from dfs_rl.utils.config.errors import chosen_blocks
from dfs_rl.utils.config.records import (
    SEEDS,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    Seed,
    UnitInterval,
    config_from_dict,
    config_to_dict,
    configuration,
    fields_from_dict,
    flat_settings,
    load_config,
    save_config,
    usual_settings,
)
from dfs_rl.utils.config.yaml_core import YamlSettings, dump_yaml, parse_value, read_yaml

__all__ = [
    "SEEDS",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "PositiveUnitInterval",
    "Seed",
    "UnitInterval",
    "YamlSettings",
    "chosen_blocks",
    "config_from_dict",
    "config_to_dict",
    "configuration",
    "dump_yaml",
    "fields_from_dict",
    "flat_settings",
    "load_config",
    "parse_value",
    "read_yaml",
    "save_config",
    "usual_settings",
]
