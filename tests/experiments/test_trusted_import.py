"""Constructors on the command line: errors of their code, and no code without trust."""

from pathlib import Path

import pytest
import torch

from dfs_rl import train_agent, train_static
from dfs_rl.utils.trusted_import import call_constructor, trust_constructor
from tests.helpers.custom_models import write

pytestmark = pytest.mark.usefixtures("no_allowed_constructors")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backbone", "nonets:make"], "nonets:make cannot be imported"),
        (["--backbone", "ownnets:nothing"], "no attribute 'nothing'"),
        (["--backbone", "ownnets:number"], "returns a int"),
        (
            ["--backbone", "ownnets:make", "--weights", "none.pt"],
            "none.pt cannot be read: No such file",
        ),
        (["--backbone", "ownnets:make", "--weights", "ownnets.py"], "cannot be read as weights"),
        (["--backbone", "ownnets:backbone", "--weights", "none.pt"], "returns a backbone"),
        (["--weights", "none.pt"], "weights go with a constructor"),
    ],
)
def test_bad_constructors_and_weights_are_refused(flags, sentence, capsys):
    write("ownnets")
    assert train_agent.main([*flags, "--run-dir", "run"]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, ["Missing key(s)", '"0.weight", "0.bias", "1.conv.weight"', '"net.0.weight"']),
        ({"prefix": "", "drop": ("5.bias",)}, ['Missing key(s) in state_dict: "5.bias".']),
        ({"prefix": "", "classes": 7}, ["size mismatch for 5.weight", "for 5.bias"]),
    ],
)
def test_misfit_weights_are_named(changes, reasons, refusal):
    prefix, drop = changes.get("prefix", "net."), changes.get("drop", ())
    write("othernets", classes=changes.get("classes", 10))
    trust_constructor("othernets:make")
    state = call_constructor("othernets:make").state_dict()
    torch.save({prefix + name: v for name, v in state.items() if name not in drop}, "net.pt")
    write("ownnets")
    sentence = refusal(train_agent.main, ["--backbone", "ownnets:make", "--weights", "net.pt"])
    assert sentence.startswith("error: the weights in net.pt do not fit the model: ")
    assert all(reason in sentence for reason in reasons)


@pytest.mark.parametrize(
    ("function", "reason", "culprit"),
    [
        ("fails", "ValueError: no good", "raise ValueError"),
        ("deep", "ValueError: in_channels must be divisible by groups", "groups=2"),
        ("quits", "SystemExit", "sys.exit()"),
        ("needs", "TypeError: needs() missing 1 required positional argument: 'classes'", None),
        ("three", "TypeError: 'int' object is not callable", None),
    ],
)
def test_failing_constructor_is_one_sentence(function, reason, culprit, refusal):
    write("ownnets")
    lines = Path("ownnets.py").read_text(encoding="utf-8").splitlines()
    numbers = [n for n, line in enumerate(lines, start=1) if culprit and culprit in line]
    place = f" ({Path('ownnets.py').resolve()}, line {numbers[0]})" if numbers else ""
    assert refusal(train_static.main, ["--backbone", f"ownnets:{function}"]) == (
        f"error: constructor ownnets:{function} fails: {reason}{place}; it must be a function that "
        "works without arguments and returns "
        "a torch.nn.Module or a backbone."
    )


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("x = 1\ndef make(:\n", "SyntaxError: invalid syntax", 2),
        ("import sys\n\nsys.exit('bye')\n", "SystemExit: bye", 3),
        ("1 / 0\n", "ZeroDivisionError: division by zero", 1),
    ],
)
def test_missing_module_is_one_sentence(text, reason, line, refusal):
    path = Path("ownnets.py").resolve()
    path.write_text(text, encoding="utf-8")
    assert refusal(train_static.main, ["--backbone", "ownnets:make"]) == (
        f"error: constructor ownnets:make cannot be imported: {reason} ({path}, line {line}); "
        "module ownnets must be in "
        f"{path.parent} or be installed, and have make."
    )


def test_ctrl_c_in_a_constructor_interrupts(capsys):
    write("ownnets")
    assert train_static.main(["--backbone", "ownnets:stopped"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
