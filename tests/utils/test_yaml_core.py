import os

import pytest

from dfs_rl.errors import ConfigError
from dfs_rl.utils.yaml_core import read_yaml


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: 1\na: 2", "is not valid YAML: key 'a' is given twice (line 2)."),
        (b"a: {b: 1, b: 2}", "is not valid YAML: key 'b' is given twice (line 1)."),
        (b"a: &x [1]\nb: *x", "is not valid YAML: aliases are not allowed."),
        (b"1: 2", "is not valid YAML: key '1' is not text (line 1)."),
        (b"? [a, b]\n: 1", "is not valid YAML: key of kind sequence is not text (line 1)."),
        (b"!!str [a]: 1", "is not valid YAML: key of kind sequence is not text (line 1)."),
        (b"a: !!bool x", "is not valid YAML: the tag tag:yaml.org,2002:bool is not allowed here"),
        (b"a: " + b"9" * 5000, "is not valid YAML: Exceeds the limit"),
        (b"#" * (2**20 + 1), "cannot be read: it has more than 1 MiB"),
        (b"a: [", "is not valid YAML: "),
        (b"- 1\n- 2", "contains a list; a configuration is a mapping of settings."),
        (b"digits", "contains a single value; a configuration is a mapping of settings."),
        (b"a: \x00", "is not valid YAML: "),
        (b"\xff\xfe\xff", "is not valid YAML: "),
        (b"\x89PNG\r\n\x1a\n\x00", "is not valid YAML: "),
        (b"[" * 5000, "is not valid YAML: it is nested too deeply."),
        (b"a: !!timestamp 2020-01-01", "is not valid YAML: "),
        (b"a: !!binary aGk=", "is not valid YAML: "),
    ],
)
def test_yaml_beyond_plain_values_is_refused(tmp_path, content, complaint):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path} {complaint}")
    assert "\n" not in str(caught.value)


def test_reading_never_executes_code(tmp_path):
    path, proof = tmp_path / "c.yaml", tmp_path / "proof"
    path.write_text(f"a: !!python/object/apply:os.mkdir ['{proof}']")
    with pytest.raises(ConfigError, match=r"the tag .*apply:os\.mkdir is not allowed"):
        read_yaml(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nope.yaml", "does not exist."),
        ("", "is a folder, but a file is needed here."),
        ("pipe", "cannot be read: it is a pipe or a device"),  # opening it would wait for a writer
    ],
)
def test_what_is_no_file_is_named(tmp_path, name, complaint):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} {complaint}")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("+1", 1),
        ("-9223372036854775808", -(2**63)),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("2026-01-02", "2026-01-02"),
        ("010", 10),
        ("True", True),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("e5", "e5"),
        ("-", [None]),
        ("1.2.3", "1.2.3"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(tmp_path, scalar, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"a:\n  {scalar}")
    read = read_yaml(path)["a"]
    assert read == value
    assert type(read) is type(value)


def test_errors_name_the_line_of_the_nearest_parent(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 1\nppo:\n  n_steps: 4\n")
    settings = read_yaml(path)
    assert settings.where("settings.yaml", ("ppo", "n_steps")) == "settings.yaml, line 3"
    missing = settings.where("settings.yaml", ("ppo", "n_epochs", "first"))
    assert missing == settings.where("settings.yaml", ("ppo",))
    assert missing.startswith("settings.yaml, line")
    assert settings.where("settings.yaml", ("a2c",)) == "settings.yaml"
