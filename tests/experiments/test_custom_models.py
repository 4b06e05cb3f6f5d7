"""Users' networks on disk and as --backbone, made by a constructor that the user names."""

import copy
import dataclasses
import functools
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch

import dfs_rl
from dfs_rl import fractionalize, train_agent, train_gumbel, train_static
from dfs_rl.backbones import (
    BackboneInfo,
    Fractionalized,
    load_backbone,
    load_stored_backbone,
    save_backbone,
)
from dfs_rl.backbones.conversion.tracing import trace
from dfs_rl.data import ImageSet, load_dataset
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.evaluate import main as evaluate_main
from dfs_rl.train_backbone import main as train_backbone_main
from dfs_rl.training.custom_model import build_calibrated_backbone
from dfs_rl.training.supernet import accuracy_of
from dfs_rl.utils import trusted_import
from tests.helpers.custom_models import forgotten_trust, write
from tests.helpers.models import NETS, examples, lived_in, pictures

pytestmark = pytest.mark.usefixtures("no_allowed_constructors")
INFO = BackboneInfo(dataset="noise", fingerprint="0", class_names=tuple("abcde"))


@functools.cache
def _made(name: str) -> Fractionalized:
    constructor = f"tests.helpers.models:{NETS[name].__name__}"
    return fractionalize(
        lived_in(NETS[name]), examples(), granularity="branch", constructor=constructor
    )


def made(name: str) -> Fractionalized:
    """Return a backbone of one of the small nets, whose constructor is trusted."""
    backbone = copy.deepcopy(_made(name))
    trusted_import.trust_constructor(backbone.config.constructor)
    return backbone


def store(name: str, folder) -> Fractionalized:
    """Store a backbone of one of the small nets."""
    backbone = made(name)
    backbone.feature_mean.normal_()
    save_backbone(backbone, INFO, folder)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet", "vit", "windows"])
def test_what_is_stored_comes_back(name, tmp_path):
    backbone = store(name, tmp_path)
    again = load_backbone(str(tmp_path))
    assert isinstance(again, Fractionalized)
    assert again.config == backbone.config
    assert again.report == backbone.report
    for bits in backbone.options:
        assert torch.equal(again(pictures(), bits), backbone(pictures(), bits))
    assert torch.equal(again.feature_mean, backbone.feature_mean)


def test_nothing_is_called_unless_the_user_names_it(tmp_path):
    store("resnet", tmp_path)
    with forgotten_trust():
        with pytest.raises(ConfigError, match="give --trust-code"):
            load_backbone(tmp_path)
        assert load_backbone(tmp_path, trust_code=True)
        with pytest.raises(ConfigError, match="give --trust-code"):
            load_backbone(tmp_path)  # trust ends with the call


def test_backbone_without_constructor_is_not_stored(tmp_path):
    backbone = made("resnet")
    backbone.config = dataclasses.replace(backbone.config, constructor=None)
    with pytest.raises(ConfigError, match="constructor='module:function'"):
        save_backbone(backbone, INFO, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_net(tmp_path):
    """Folder of a stored backbone that a constructor in a file makes."""
    write("ownnets")
    trusted_import.trust_constructor("ownnets:make")
    model = trusted_import.call_constructor("ownnets:make")
    backbone = fractionalize(model, torch.rand(8, 1, 8, 8), constructor="ownnets:make")
    save_backbone(backbone, INFO, tmp_path / "b")
    return tmp_path / "b"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"act": "sigmoid"}, "makes a model of another structure"),
        ({"channels": 3}, "does not accept the example images"),
        ({"classes": 4}, "makes a model of another structure"),
    ],
)
def test_a_constructor_that_changed_is_refused(own_net, change, sentence):
    load_backbone(own_net)
    write("ownnets", **change)
    with pytest.raises(ConfigError, match=sentence):
        load_backbone(own_net)


def test_a_constructor_with_another_number_is_refused(tmp_path):
    write("ownnets", act="clamp_min(0.1).clone")
    trusted_import.trust_constructor("ownnets:make")
    model = trusted_import.call_constructor("ownnets:make")
    made = fractionalize(model, torch.rand(8, 1, 8, 8), constructor="ownnets:make")
    save_backbone(made, INFO, tmp_path / "b")
    write("ownnets", act="clamp_min(0.2).clone")
    with pytest.raises(ConfigError, match="makes a model of another structure"):
        load_backbone(tmp_path / "b")


def test_a_constructor_with_other_bits_is_refused(tmp_path):
    write("ownnets")
    trusted_import.trust_constructor(name := "ownnets:backbone")
    backbone = trusted_import.call_constructor(name)
    backbone.config = dataclasses.replace(backbone.config, constructor=name)
    save_backbone(backbone, INFO, tmp_path / "b")
    assert load_backbone(tmp_path / "b").options.values == (0, 4, 32)
    write("ownnets", bits=(0, 3, 32))
    with pytest.raises(ConfigError, match=r"whose bits is \(0, 3, 32\); .* is \(0, 4, 32\)"):
        load_backbone(tmp_path / "b")


def test_a_constructor_that_is_gone_is_named(own_net, tmp_path):
    (tmp_path / "ownnets.py").unlink()
    sys.modules.pop("ownnets")
    with pytest.raises(ConfigError, match="ownnets:make cannot be imported: ModuleNotFoundError"):
        load_backbone(own_net)


def test_weights_of_another_network_are_refused(tmp_path):
    store("resnet", tmp_path)
    record = json.loads((tmp_path / "backbone.json").read_text())
    record["config"] |= {"digest": "", "bits": [0, 4, 32]}
    (tmp_path / "backbone.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="do not fit the backbone"):
        load_stored_backbone(tmp_path)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run of train_agent on an own network with weights from a file, and its folder."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("othernets")
        with trusted_import.trusting(True):
            model = trusted_import.call_constructor("othernets:make")
        torch.nn.init.constant_(model[-1].bias, 0.125)
        torch.save(model.state_dict(), "weights.pt")
        flags = ["--backbone", "othernets:make", "--weights", "weights.pt", "--passes", "1"]
        assert train_agent.main([*flags, "--timesteps", "1000", "--run-dir", "run"]) == 0
    return folder


def test_a_frozen_network_is_gated_without_training(own, monkeypatch, capsys):
    monkeypatch.chdir(own)
    model = dfs_rl.load("run", trust_code=True)
    images = load_dataset("digits").test
    logits, trace = model(images.images[:8])
    assert logits.shape == (8, 10)
    assert trace.bits.shape == (8, 2)
    stored = load_stored_backbone(own / "run" / "backbone", trust_code=True)
    with trusted_import.trusting(True):
        network = trusted_import.call_constructor("othernets:make")
    network.load_state_dict(torch.load("weights.pt", weights_only=True))
    network.eval()
    mean, std = (
        torch.tensor(v).reshape(1, 1, 1, 1)
        for v in (stored.backbone.statistics.mean, stored.backbone.statistics.std)
    )
    with torch.no_grad():
        expected = network((images.images.float() / 255 - mean) / std)
    right = 100.0 * float((expected.argmax(1) == images.labels).float().mean())
    assert accuracy_of(stored.backbone, images, (32, 32)) == pytest.approx(right, abs=0.3)


def test_code_that_a_file_names_runs_only_if_trusted(own, monkeypatch, capsys):
    monkeypatch.chdir(own)
    for main, flags in (
        (evaluate_main, ["run", "--split", "val"]),
        (train_agent.main, ["--resume", "run"]),
        (train_agent.main, ["--config", "run/config.yaml", "--run-dir", "new"]),
    ):
        assert main(flags) == 2
        assert "othernets:make" in (said := capsys.readouterr().err)
        assert "give --trust-code" in said
    assert evaluate_main(["run", "--split", "val", "--trust-code"]) == 0
    assert train_agent.main(["--resume", "run", "--trust-code"]) == 0
    assert train_agent.main(["--resume", "run"]) == 2  # each command needs the flag
    assert train_agent.main(["--resume", "run", "--backbone", "othernets:make"]) == 2
    assert "leave out the argument --backbone" in capsys.readouterr().err


def test_gate_trains_on_a_stored_custom_backbone(own, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(own)
    flags = ["--backbone", "run", "--method", "greedy", "--images", "50", "--budget", "40"]
    run = ["--run-dir", str(tmp_path / "gate")]
    assert train_static.main([*flags, *run]) == 2
    assert "give --trust-code" in capsys.readouterr().err
    assert not (tmp_path / "gate").exists()
    assert train_static.main([*flags, *run, "--trust-code"]) == 0
    assert train_static.main(["--resume", run[1]]) == 2
    assert train_static.main(["--resume", run[1], "--trust-code"]) == 0


def test_torch_says_nothing_beside_the_sentence(capfd):
    write("ownnets")
    assert train_agent.main(["--backbone", "ownnets:choosing", "--run-dir", "run"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: module '0' cannot be traced by torch.export (")
    assert line.endswith("without choices that depend on values or on the batch size.")


def test_what_others_log_is_heard_again_after_tracing(capsys, caplog):
    with caplog.at_level(logging.WARNING):
        trace(lived_in(NETS["resnet"]), examples())
        logging.getLogger("theirs").warning("heard")
    print("heard as well")
    assert "heard" in caplog.text
    assert "heard as well" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="heard too"):
        warnings.warn("heard too", stacklevel=1)


def test_constructor_draws_are_reproducible():
    write("ownnets")
    trusted_import.trust_constructor("ownnets:drawn")
    state = torch.get_rng_state()
    first, second = (
        build_calibrated_backbone("ownnets:drawn", load_dataset("digits")).backbone
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    again = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_a_budget_that_nobody_gave_is_told_apart(refusal):
    write("ownnets")
    said = refusal(train_gumbel.main, ["--backbone", "ownnets:make"])
    assert said.startswith("error: budget is 1 %, too little for the cheapest choice of every")
    assert said.endswith("; give a higher one. 1 % is the default of --budget.")


def test_a_network_for_other_classes_is_refused(capsys):
    write("ownnets", classes=7)
    assert train_agent.main(["--backbone", "ownnets:make"]) == 2
    assert "has 7 classes" in capsys.readouterr().err


def test_a_constructor_may_return_a_backbone(capsys):
    write("ownnets")
    flags = ["--backbone", "ownnets:backbone", "--timesteps", "512", "--passes", "1"]
    assert train_agent.main([*flags, "--run-dir", "run"]) == 0
    stored = load_stored_backbone(Path("run"), trust_code=True)
    assert stored.backbone.options.values == (0, 4, 32)
    assert stored.backbone.statistics.mean == (0.5,)


def test_static_tables_use_no_exits(capsys):
    write("ownnets")
    flags = ["--method", "greedy", "--images", "50", "--budget", "40", "--run-dir", "run"]
    assert train_static.main(["--backbone", "ownnets:leaving", *flags]) == 0
    said = capsys.readouterr().err
    assert said.count("Calibrating the network of ownnets:leaving") == 1
    assert said.count("does not use the backbone's exits") == 1
    assert load_backbone(Path("run"), trust_code=True).costs.exits_after == ()


@pytest.mark.parametrize(
    ("flags", "asked"), [(["--plain"], "32"), (["--bits", "0", "2", "32"], "0 2 32")]
)
def test_bit_options_of_a_users_backbone_stay(flags, asked, refusal):
    write("ownnets")
    assert refusal(train_backbone_main, ["--backbone", "ownnets:backbone", *flags]) == (
        "error: ownnets:backbone returns a backbone with the bit options 0 4 32, but asked for are "
        f"{asked}; leave out {flags[0]}, or let it return a model."
    )


def test_a_supernet_of_a_users_network_is_trained(capsys):
    write("ownnets")
    flags = ["--backbone", "ownnets:make", "--epochs", "1", "--bits", "0", "4", "32"]
    assert train_backbone_main([*flags, "--run-dir", "run"]) == 0
    stored = load_stored_backbone(Path("run"), trust_code=True)
    assert stored.info.accuracy.keys() == {"4", "32"}
    assert isinstance(stored.backbone, Fractionalized)
    images = ImageSet(pictures(4)[:, :1, :8, :8], torch.zeros(4, dtype=torch.int64))
    assert 0.0 <= accuracy_of(stored.backbone, images, (4, 0)) <= 100.0


# --- constructors on the command line that fail


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backbone", "nonets:make"], "nonets:make cannot be imported"),
        (["--backbone", "ownnets:nothing"], "no attribute 'nothing'"),
        (["--backbone", "ownnets:number"], "returns a int"),
        (["--backbone", "ownnets:make", "--weights", "none.pt"], "none.pt does not exist"),
        (["--backbone", "ownnets:make", "--weights", "ownnets.py"], "cannot be read as weights"),
        (["--backbone", "ownnets:backbone", "--weights", "ownnets.py"], "returns a backbone"),
        (["--weights", "ownnets.py"], "weights go with a constructor"),
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
    trusted_import.trust_constructor("othernets:make")
    state = trusted_import.call_constructor("othernets:make").state_dict()
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
