import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import (
    Count,
    PositiveInt,
    PositiveUnitInterval,
    Seed,
    config_bytes,
    config_from_dict,
    config_to_dict,
    configuration,
    load_config,
)


@configuration
class Clip:
    clip_range: float = 0.2
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.clip_range < 0:
            raise ConfigError(f"clip_range is {self.clip_range}; it must not be negative.")


@configuration
class Train:
    algo: Literal["ppo", "a2c"] = "ppo"
    bits: tuple[int, ...] = (0, 2, 32)
    pair: tuple[int, float] = (0, 2.0)
    backbone: Path | None = None
    weight: float = 1.0
    steps: int = 1
    flip: bool = True
    dataset: str = "digits"
    workers: int | Literal["auto"] = "auto"
    run: Annotated[str, "a marker of another library"] = "x"
    ppo: Clip = field(default_factory=Clip)
    cut: Clip | None = None
    limits: dict[str, int] = field(default_factory=dict)
    sizes: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)

    def __post_init__(self):
        if self.steps == 13:
            raise ConfigError("steps is 13; thirteen is not allowed.")


@configuration
class Required:
    path: Path
    n: int = 1


def load(tmp_path: Path, text: str) -> Train:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return load_config(path, Train)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("weight: 1e-4", "weight", 0.0001),
        ("weight: 3", "weight", 3.0),
        ("bits: [0, 4]", "bits", (0, 4)),
        ("bits: []", "bits", ()),
        ("pair: [1, 2]", "pair", (1, 2.0)),
        ("backbone: runs/a", "backbone", Path("runs/a")),
        ("backbone: null", "backbone", None),
        ("workers: 3", "workers", 3),
        ("workers: auto", "workers", "auto"),
        ("cut: {clip_range: 1}", "cut", Clip(clip_range=1.0)),
        ("limits: {a: 1}", "limits", {"a": 1}),
        ("", "algo", "ppo"),
    ],
)
def test_values_arrive_with_their_declared_type(tmp_path, text, name, value):
    loaded = getattr(load(tmp_path, text), name)
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stepz: 1", "stepz is not a setting; the closest one is steps."),
        ("zzz: 1", "zzz is not a setting; allowed are algo, bits, pair, "),
        ("back-bone: 1", "back-bone is not a setting; the closest one is backbone."),
        ("ppo: {cliprange: 1}", "ppo.cliprange is not a setting; the closest one is clip_range."),
        ("cut: {zzz: 1}", "cut.zzz is not a setting; allowed are clip_range, names."),
        ("steps: true", "steps is true; allowed is a whole number."),
        ("steps: 1.0", "steps is 1.0; allowed is a whole number."),
        ("steps: '1'", "steps is '1'; allowed is a whole number."),
        ("steps: {a: 1}", "steps is {'a': 1}; allowed is a whole number."),
        ("algo: {a: 1}", "algo is {'a': 1}; allowed is one of 'ppo', 'a2c'."),
        ("ppo: {clip_range: {a: 1}}", "ppo.clip_range is {'a': 1}; allowed is a number."),
        ("weight: .inf", "weight is inf; it must be finite."),
        ("weight: 1e400", "weight is inf; it must be finite."),
        ("pair: [1, .nan]", "pair[1] is nan; it must be finite."),
        ("flip: 1", "flip is 1; allowed is true or false."),
        ("flip: yes", "flip is 'yes'; allowed is true or false."),
        ("dataset: 5", "dataset is 5; allowed is text."),
        ("weight: '1'", "weight is '1'; allowed is a number."),
        ("weight: true", "weight is true; allowed is a number."),
        ("weight: null", "weight is null; allowed is a number."),
        ("backbone: 1", "backbone is 1; allowed is text."),
        ("algo: ppoo", "algo is 'ppoo'; allowed is one of 'ppo', 'a2c'; the closest one is 'ppo'."),
        ("workers: all", "workers is 'all'; allowed is a whole number or 'auto'."),
        ("bits: 3", "bits is 3; allowed is a list."),
        ("bits: [1, x]", "bits[1] is 'x'; allowed is a whole number."),
        ("pair: [1]", "pair is [1]; allowed is a list of another length."),
        ("sizes: []", "sizes is []; allowed is a list of at least 1."),
        ("pair: [1, 2, 3]", "pair is [1, 2, 3]; allowed is a list of 2."),
        ("ppo: 3", "ppo is 3; allowed is a block of settings."),
        ("ppo: {clip_range: x}", "ppo.clip_range is 'x'; allowed is a number."),
        ("limits: {a: x}", "limits.a is 'x'; allowed is a whole number."),
        ("run: 1", "run is 1; allowed is text."),
        ("ppo: {clip_range: -1}", "ppo: clip_range is -1.0; it must not be negative."),
    ],
)
def test_faults_name_line_key_value_and_allowed_values(tmp_path, text, sentence):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"# a comment\n\n{text}")
    assert str(caught.value).startswith(f"{tmp_path / 'train.yaml'}, line 3: {sentence}")
    assert "\n" not in str(caught.value)


@configuration
class Ranges:
    seed: Seed = 0
    count: PositiveInt | None = None
    repeats: Count = 1
    rate: PositiveUnitInterval = 0.5


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("seed", -1, "must be at least 0"),
        ("seed", 2**32, "must be at most 4294967295"),
        ("seed", True, "allowed is a whole number"),
        ("count", 0, "must be at least 1"),
        ("count", 10**10 + 1, "must be at most 10000000000"),
        ("repeats", 100_001, "must be at most 100000"),
        ("rate", 0.0, "must be above 0"),
        ("rate", 1.5, "must be at most 1"),
        ("rate", math.nan, "must be finite"),
        ("rate", "x", "allowed is a number"),
    ],
)
def test_files_and_python_have_the_same_ranges(name, value, allowed):
    with pytest.raises(ConfigError, match=f"^{name} is .*{allowed}"):
        Ranges(**{name: value})
    with pytest.raises(ConfigError, match=f"^here: {name} is .*{allowed}"):
        config_from_dict({name: value}, Ranges, "here")


def test_value_of_a_foreign_class_is_refused():
    with pytest.raises(ConfigError, match=r"^rate is \{0.5\}; allowed is a number"):
        Ranges(rate={0.5})


@pytest.mark.parametrize(
    ("cls", "data", "fault"),
    [
        (Train, {"backbone": ""}, "backbone is ''; allowed is a path that is not empty."),
        (Train, {"dataset": "\ud800"}, "a value contains text that is not Unicode, or is nested"),
        (Required, {"n": 2}, "path is missing and has no default."),
    ],
)
def test_faults_of_plain_values_name_their_source(cls, data, fault):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(data, cls, "here")
    assert str(caught.value).startswith(f"here: {fault}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("steps: 2\nlimits:\n  a: 1\n  b: x\n", ", line 4: limits.b is 'x'"),
        ("bits:\n  - 1\n  - x\n", ", line 3: bits[1] is 'x'"),
        ("steps: 13", ": steps is 13; thirteen is not allowed"),  # all settings together
    ],
)
def test_faults_of_a_file_name_the_innermost_line(tmp_path, text, fault):
    with pytest.raises(ConfigError, match=re.escape(f"train.yaml{fault}")):
        load(tmp_path, text)


words = st.integers(-(2**63), 2**63 - 1)
paths = st.text("abc/.-_ ", min_size=1).map(Path)
clips = st.builds(
    Clip,
    clip_range=st.floats(0, allow_nan=False, allow_infinity=False),
    names=st.lists(st.text()).map(tuple),
)
configs = st.builds(
    Train,
    algo=st.sampled_from(["ppo", "a2c"]),
    bits=st.lists(words).map(tuple),
    pair=st.tuples(words, st.floats(allow_nan=False, allow_infinity=False)),
    backbone=st.none() | paths,
    weight=st.floats(allow_nan=False, allow_infinity=False),
    steps=words.filter(lambda n: n != 13),
    flip=st.booleans(),
    dataset=st.text() | st.sampled_from(["1e-4", "no", "null", "010", "1.5", "~", "0x1F", ".inf"]),
    workers=words | st.just("auto"),
    run=st.text(),
    ppo=clips,
    cut=st.none() | clips,
    limits=st.dictionaries(st.text(), words),
)


@given(config=configs)
def test_configuration_round_trips_through_its_file(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_bytes(config_bytes(config))
    assert load_config(path, Train) == config


def test_lists_stay_on_one_line_and_fields_in_order():
    lines = config_bytes(Train()).decode().splitlines()
    assert lines[:3] == ["algo: ppo", "bits: [0, 2, 32]", "pair: [0, 2.0]"]


def test_a_value_without_plain_form_is_refused():
    @dataclass(frozen=True)
    class Odd:
        value: object = dataclasses.MISSING

    with pytest.raises(TypeError, match="has no JSON form"):
        config_to_dict(Odd(value=object()))
    with pytest.raises(TypeError, match="a configuration is a dataclass, not a int"):
        config_to_dict(3)
