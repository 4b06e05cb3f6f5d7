import json
import subprocess
import sys
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from torch.utils.tensorboard.writer import SummaryWriter

from dfs_rl.errors import ConfigError, DataError
from dfs_rl.utils.cli import Invocation, run_command
from dfs_rl.utils.config import configuration
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.disks import full_disk


@configuration
class Ppo:
    """Settings of PPO.

    Attributes:
        clip_range: How far a policy may move in one update.
        n_epochs: Passes over each rollout.
    """

    clip_range: float = 0.2
    n_epochs: int = 4

    def __post_init__(self):
        if self.clip_range < 0:
            raise ConfigError(f"clip_range is {self.clip_range}; it must not be negative.")


@configuration
class TrainPpo(Ppo):
    n_epochs: int = 7


@configuration
class Train:
    """Train a gate.

    Attributes:
        algo: The learning algorithm.
        bits: Bit options.
        ppo: Settings of PPO.
        budget: Upper bound in percent.
        span: Lowest and highest budget.
        verbose: Say more.
        seed: The seed.
        dataset: The images.
        weights: Weights to start from.
        run_dir: Where to write.
    """

    algo: Literal["ppo", "a2c"] = "ppo"
    bits: tuple[int, ...] = (0, 2, 32)
    ppo: TrainPpo = field(default_factory=TrainPpo)
    budget: float | None = None
    span: tuple[float, float] | None = None
    verbose: bool = False
    seed: int = 0
    dataset: str = "digits"
    weights: Path | None = None
    run_dir: Path | None = None

    def __post_init__(self):
        if self.budget is not None and self.budget <= 0:
            raise ConfigError(f"budget is {self.budget}; it must be positive.")


@configuration
class Evaluate:
    """Evaluate a run.

    Attributes:
        run: A run folder.
        split: Which images.
        item: Some items.
    """

    run: tyro.conf.Positional[Path]
    split: Literal["val", "test"] = "test"
    item: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()


def command(main, config_type, argv, **options):
    options = {"prog": "python -m train", "description": "Train a gate.", **options}
    return run_command(main, config_type, argv=argv, **options)


def invoke(*argv: str) -> Invocation[Train]:
    seen: list[Invocation[Train]] = []
    assert command(seen.append, Train, argv, kind="train") == 0
    return seen[0]


def refuse(capsys, *argv: str) -> str:
    def main(_):
        pytest.fail("the command ran")

    commands = {"train": f"{__name__}:Train", "evaluate": f"{__name__}:Evaluate"}
    assert command(main, Train, argv, kind="train", commands=commands) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("error: ").rstrip("\n")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_defaults_without_flags():
    invocation = invoke()
    assert invocation.config == Train()
    assert type(invocation.config) is Train
    assert invocation.resume is None
    assert invocation.command == ("python", "-m", "train")


def test_flags_of_every_type():
    flags = "--algo a2c --bits 0 4 8 --ppo.clip-range 0.1 --budget 2 --verbose --seed 3 --run-dir x"
    assert invoke(*flags.split()).config == Train(
        algo="a2c",
        bits=(0, 4, 8),
        ppo=TrainPpo(clip_range=0.1),
        budget=2.0,
        verbose=True,
        seed=3,
        run_dir=Path("x"),
    )
    assert invoke("--seed", "1e5", "--bits", "1_0", "2.5E1").config == Train(
        seed=100_000, bits=(10, 25)
    )
    assert invoke("--no-verbose", "--bits=4", "--budget", "None").config == Train(bits=(4,))


def test_flags_win_over_files_and_files_over_defaults(tmp_path):
    text = "seed: 5\nbudget: 1e-1\nppo: {clip_range: 0.3}\nbits: [0, 4]"
    file = write(tmp_path / "c.yaml", text)
    for argv in (["--config", file, "--seed", "6"], ["--seed=6", f"--config={file}"]):
        assert invoke(*argv).config == Train(
            seed=6, budget=0.1, ppo=TrainPpo(clip_range=0.3), bits=(0, 4)
        )


def test_checks_across_fields_see_files_and_flags(tmp_path, capsys):
    file = write(tmp_path / "c.yaml", "budget: -1")
    assert invoke("--config", file, "--budget", "1").config.budget == 1
    assert refuse(capsys, "--config", file) == "budget is -1.0; it must be positive."


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--algo x", "--algo is 'x'; allowed are 'a2c', 'ppo'; see "),
        ("--algo pop", "--algo is 'pop'; allowed are 'a2c', 'ppo'; the closest one is 'ppo'; see "),
        ("--sed=1", "--sed is no flag of this command; the closest one is --seed; see "),
        ("--ppo.clip-rang 1", "--ppo.clip-rang is no flag of this command; the closest one is --p"),
        ("--n_epochs 1", "--n_epochs is no flag of this command; the closest one is --ppo.n-epoc"),
        ("--split val", "--split is no flag of this command; it belongs to evaluate; see "),
        ("--run x", "--run is no flag of this command; the closest one is --run-dir; see "),
        ("--zzz 1", "--zzz is no flag of this command; see "),
        ("zzz", "'zzz' is no argument of this command; see "),
        ("--seed x", "--seed is 'x'; allowed: a whole number; "),
        ("--seed 1e-1", "--seed is '1e-1'; allowed: a whole number; "),
        ("--seed 1.0", "--seed is '1.0'; allowed: a whole number; "),
        ("--weights x/net.pt", "weights: x/net.pt does not exist."),
        ("--dataset ./no", "data set './no' does not exist; allowed are "),
        ("--seed", "--seed needs a value after it; see "),
        ("--bits 0 x", "--bits is '0', 'x'; allowed: one or more whole numbers; see "),
        ("--ppo.clip-range x", "--ppo.clip-range is 'x'; allowed: a number; see "),
        ("--span 1", "--span is '1'; allowed: 2 numbers; see "),
        ("--ppo.clip-range -1", "ppo: clip_range is -1.0; it must not be negative."),
        ("--budget 0", "budget is 0.0; it must be positive."),
        ("--config", "--config needs a value after it."),
        ("--config a --config b", "--config is given 2 times; once is allowed."),
        ("--seed 1 --seed 2", "--seed is given 2 times; once is allowed."),
        ("--run-dir a --run_dir b", "--run-dir is given 2 times; once is allowed."),
        ("--verbose --no-verbose", "--verbose is given 2 times; once is allowed."),
        ("--ppo.n-epochs 1 --ppo.n-epochs=2", "--ppo.n-epochs is given 2 times; once is"),
        ("--run-dir=", "an argument is empty"),
        ("--budget x", "--budget is 'x'; allowed: a number; see "),
        ("--config nope.yaml", "nope.yaml does not exist."),
        ("--resume nope", "nope is not a folder, so it holds no run."),
        ("--resume nope --seed 1", "--resume nope continues with the settings of that run; "),
        ("--resume=nope --config=c", "--resume nope continues with the settings of that run; "),
        ("--resume nope --dataset", "--dataset needs a value after it."),
    ],
)
def test_bad_flags_are_one_sentence(capsys, argv, sentence):
    assert refuse(capsys, *argv.split()).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sed: 1", "sed is not a setting; the closest one is seed."),
        ("ppo: {clip_range: -1}", "ppo: clip_range is -1.0; it must not be negative."),
        ("config: x", "config is not a setting; "),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, capsys, text, sentence):
    file = write(tmp_path / "c.yaml", text)
    assert refuse(capsys, "--config", file).startswith(f"{file}, line 1: {sentence}")


def test_resume_takes_the_settings_of_the_run(tmp_path, capsys):
    config = Train(seed=9, bits=(0, 8), ppo=TrainPpo(clip_range=0.4))
    folder = RunFolder.create(tmp_path / "run", kind="train", name="x", config=config, command=[])
    for argv in (["--resume", str(folder.path)], [f"--resume={folder.path}"]):
        invocation = invoke(*argv)
        assert invocation.config == config
        assert invocation.resume == folder
    for beside in (["--dataset", "moved"], ["--dataset=moved"]):
        invocation = invoke("--resume", str(folder.path), *beside)
        assert invocation.config == replace(config, dataset="moved")
    other = RunFolder.create(tmp_path / "o", kind="other", name="x", config=config, command=[])
    assert refuse(capsys, "--resume", str(other.path)) == (
        f"{other.path} is a run of kind other; kind train is needed here."
    )


def test_a_folder_of_another_run_is_refused_before_the_work(tmp_path):
    RunFolder.create(tmp_path / "run", kind="train", name="x", config=Train(), command=[])
    begun = []
    arguments = ["--run-dir", str(tmp_path / "run")]
    assert command(begun.append, Train, arguments, kind="train") == 2
    assert not begun


def test_help_lists_fields_in_order_and_blocks_last(capsys):
    assert command(lambda _: None, Train, ["--help"], kind="train") == 0
    text = capsys.readouterr().out
    names = "algo bits budget verbose seed run-dir config resume trust-code ppo.clip"
    places = [text.index(f"--{name}") for name in names.split()]
    assert places == sorted(places)
    for part in ("Train a gate.", "The learning algorithm. (default: ppo)", "(default: 7)"):
        assert part in text
    assert "default: None" not in text
    assert "\x1b" not in text  # no colours without a terminal


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("runs/a --split val", Evaluate(run=Path("runs/a"), split="val")),
        ("runs/a --config split.yaml", Evaluate(run=Path("runs/a"), split="val")),
        ("--config run.yaml", Evaluate(run=Path("runs/b"))),
        ("runs/a --item a --item=b", Evaluate(run=Path("runs/a"), item=("a", "b"))),
    ],
)
def test_positional_and_repeated_arguments(tmp_path, monkeypatch, argv, expected):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/a", "runs/b"):
        Path(run).mkdir(parents=True)
    write(Path("split.yaml"), "split: val")
    write(Path("run.yaml"), "run: runs/b")
    seen = []
    assert command(seen.append, Evaluate, argv.split()) == 0
    assert seen[0].config == expected


def test_missing_arguments_and_commands_without_runs(capsys):
    assert command(lambda _: None, Evaluate, []) == 2
    said = capsys.readouterr().err
    assert said == "error: no run is given; needed: A run folder; see python -m train --help.\n"
    assert command(lambda _: None, Evaluate, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--resume" not in shown
    assert " RUN " in shown
    assert command(lambda _: None, Evaluate, ["nowhere"]) == 2
    assert capsys.readouterr().err == "error: RUN: nowhere does not exist.\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no images in x."), 2, "error: no images in x."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (KeyboardInterrupt("Saved; go on with --resume a."), 130, "Saved; go on with --resume a."),
    ],
)
def test_own_errors_and_interrupts_are_one_sentence(capsys, error, code, said):
    def main(_):
        raise error

    assert command(main, Train, []) == code
    assert capsys.readouterr().err == f"{said}\n"


def test_a_missing_dependency_is_one_sentence(capsys):
    assert command("no_such_package.work:main", Train, []) == 2
    expected = f"error: No module named 'no_such_package' for {sys.executable}; install dfs-rl"
    assert capsys.readouterr().err == f"{expected} there again.\n"
    with pytest.raises(ModuleNotFoundError):
        command("dfs_rl.no_such_module:main", Train, [])


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda _: 1 / 0, Train, [])


PROGRAM = """
import json, os, sys
from dfs_rl.utils.cli import run_command
from dfs_rl.utils.config import configuration

@configuration
class Config:
    seed: int = 0

def main(invocation):
    policy = os.environ["OMP_WAIT_POLICY"]
    print(json.dumps([invocation.config.seed, "torch" in sys.modules, policy]))

sys.exit(run_command(main, Config, prog="p", description="d"))
"""


def test_as_a_process_in_an_ascii_locale():
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *argv],
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        )

    done = run("--seed", "4")
    assert (done.returncode, json.loads(done.stdout)) == (0, [4, False, "PASSIVE"])
    refused = run("--seed", "x")
    assert refused.returncode == 2
    said = "error: --seed is 'x'; allowed: a whole number; see p --help.\n"
    assert refused.stderr == said
    assert "--seed INT" in run("--help").stdout


def test_full_disk_under_tensorboard_is_one_sentence(tmp_path, capfd):
    def main(_):
        run = RunFolder(tmp_path, "train")
        with run.lock():
            board = SummaryWriter(str(run.tensorboard_dir))
            try:
                with full_disk(200):
                    board.add_text("long", 1000 * "x")
                    board.flush()
            finally:
                board.close()

    assert command(main, Train, []) == 2
    assert capfd.readouterr().err == (f"error: cannot read or write {tmp_path}: File too large.\n")
