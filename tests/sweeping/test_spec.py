"""Sweep files: settings, and errors in one sentence with file and line."""

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.config import SweepConfig
from dfs_rl.sweeping.space import Domain
from dfs_rl.sweeping.spec import check_with_dataset, load_sweep_file, parse_overrides
from dfs_rl.sweeping.sweep import resolved, sweep_yaml

GOOD = """\
# a sweep
command: train_agent
settings:
  timesteps: 1000
  algorithm:
    ent_coef: 0.01
search:
  reward.log_likelihood: {uniform: [0, 1]}
  cost_weight_range.0: {loguniform: [0.05, 5]}
trials: 6
"""
GRID = """\
command: train_gumbel
searcher: random
search: {method: {grid: [gumbel, dfs, skipnet]}}
trials: 3
"""
POPULATION = """\
command: train_agent
searcher: random
scheduler: {name: pbt}
search:
  algorithm.ent_coef: {uniform: [0, 1]}
"""


@pytest.fixture
def load(tmp_path):
    def load(text=GOOD, changes=None):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return load_sweep_file(path, changes)

    return load


def test_valid_file_is_read(load):
    file = load()
    assert file.search["reward.log_likelihood"] == Domain(uniform=(0.0, 1.0))
    assert file.defaults == {"reward.log_likelihood": 0.5, "cost_weight_range.0": 0.1}
    config = file.config({"cost_weight_range.0": 0.7, "reward.log_likelihood": 0.2}, seed=5)
    assert config.cost_weight_range == (0.7, 30.0)
    assert config.reward.log_likelihood == 0.2
    assert (config.algorithm.ent_coef, config.timesteps, config.seed) == (0.01, 1000, 5)
    assert load(GRID).combinations == 3
    assert load(POPULATION).scheduler.is_population


def test_flags_override_the_file(load, tmp_path, monkeypatch):
    load()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").touch()
    words = ("timesteps=77", "algorithm.ent_coef=0.5", "num-envs=64", "weights=net.pt")
    config = SweepConfig(file=tmp_path / "sweep.yaml", set=words, trials=2, retrain_seeds=1)
    file = resolved(config)
    assert (file.base["timesteps"], file.base["algorithm"]["ent_coef"]) == (77, 0.5)
    assert (file.base["num_envs"], file.trials, file.retrain.seeds) == (64, 2, 1)
    assert file.settings["weights"] == str(tmp_path / "net.pt")  # workers have other folders
    assert (
        resolved(SweepConfig(file=config.file, set=("backbone=nets:make",))).settings["backbone"]
        == "nets:make"
    )


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_an_included_data_set_is_no_folder(load, tmp_path, monkeypatch, name):
    load()
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    words = ("backbone=nets:make",)
    file = resolved(SweepConfig(file=tmp_path / "sweep.yaml", dataset=name, set=words))
    assert file.settings["dataset"] == name


@pytest.mark.parametrize("scheduler", ["", "scheduler: {name: asha, grace: 0.4}\n"])
def test_resolved_sweep_is_read_again(load, scheduler):
    file = load(GOOD + scheduler)
    assert load(sweep_yaml(file)) == file


DOMAIN = "{uniform: [0, 1]}"
RATE = "search.reward.log_likelihood"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("trials: 6", "trials: six", 10, "trials is 'six'; allowed is a whole number"),
        ("trials: 6", "trails: 6", 10, "trails is not a setting; the closest one is trials"),
        ("trials: 6", "trials: 0", 10, "trials is 0; it must be at least 1"),
        ("trials: 6", "trials: 1000000000", 10, "trials is 1000000000; it must be at most 100000"),
        ("  timesteps:", "  timestep:", 4, "timestep is not a setting; the closest one is"),
        ("ent_coef: 0.01", "ent_coef: x", 6, "algorithm.ent_coef is 'x'; allowed is a number"),
        (DOMAIN, "{uniform: [1, 0]}", 8, f"{RATE}: uniform is 1 to 0"),
        (DOMAIN, "{normal: [0, 1]}", 8, f"{RATE}.normal is not a setting"),
        (DOMAIN, "{uniform: [0, 1, 2]}", 8, f"{RATE}.uniform is [0, 1, 2]; allowed is a list"),
        ("reward.log_lik", "reward.loglik", 8, "reward.loglikelihood is not a setting of train_a"),
        ("range.0", "range.2", 9, "cost_weight_range.2 is not a setting of train_a"),
        ("cost_weight_range.0", "seed", 9, "seed cannot be searched; it must be the same"),
        ("cost_weight_range.0", "cost", 9, "cost cannot be searched; it must be the same"),
        ("timesteps: 1000", "run_dir: x", 3, "settings has run_dir, which the sweep"),
        ("timesteps: 1000", "dataset: /x", 3, "settings has data set '/x' but no backbone"),
        ("timesteps: 1000", "seed: 4294967295", 3, "settings has seed 4294967295, but fresh"),
        ("trials: 6", "objective: {name: loss}", 10, "objective.name is 'loss'; allowed is"),
        ("trials: 6", "objective: {name: pareto_front}", 10, "objective.name is 'pareto_front',"),
        ("trials: 6", "searcher: nsga2", 10, "searcher is 'nsga2', but hypervolume is one"),
        ("trials: 6", "searcher: {name: tpe}", 10, "searcher is {'name': 'tpe'}; allowed is"),
        ("trials: 6", "scheduler: {name: pbt}", 10, "scheduler.name is 'pbt', which changes"),
        ("trials: 6", "scheduler: {name: asha, grace: 2}", 10, "scheduler.grace is 2; it must be"),
        (
            "trials: 6",
            "scheduler: {grace: 0.3}",
            10,
            "scheduler: grace is 0.3, but scheduler 'none'",
        ),
        (
            "trials: 6",
            "scheduler: {name: median, reduction: 3}",
            10,
            "scheduler: reduction is 3, but scheduler 'median' has no reduction; leave",
        ),
        (
            "trials: 6",
            "scheduler: {name: asha, interval: 0.1}",
            10,
            "scheduler: interval is 0.1, but scheduler 'asha' has no interval; leave it",
        ),
        ("trials: 6", "resources: {cpus: 0}", 10, "resources.cpus is 0; it must be above 0"),
        ("trials: 6", "stop: {retries: -1}", 10, "stop.retries is -1; it must be at least"),
        ("train_agent", "train", 2, "command is 'train'; allowed is one of"),
        (DOMAIN, "{grid: [0, 1]}", None, "searcher is 'tpe', but reward.log_likelihood is"),
    ],
)
def test_errors_name_the_line(load, tmp_path, old, new, line, message):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(GOOD.replace(old, new))
    where = tmp_path / "sweep.yaml" if line is None else f"{tmp_path / 'sweep.yaml'}, line {line}"
    assert str(caught.value).startswith(f"{where}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRID.replace("trials: 3", "trials: 4"), "grids have 3 combinations; give a multiple"),
        (GRID.replace("trials: 3", "trials: 6"), "and nothing else is searched; give 3"),
        (POPULATION + "  num_envs: {choice: [64, 128]}\n", "num_envs must be uniform or logunif"),
        (POPULATION + "seeds: 2\n", "there are 24 trials of 2 seeds"),
        (POPULATION + "trials: 1\n", "there are 1 trials of 1 seeds"),
        (POPULATION + "settings: [1]\n", "settings is .1.; allowed is a mapping"),
        (
            GRID.replace("gumbel\nsearcher: random", "backbone\nsettings: {workers: 2}"),
            "a trial is one process",
        ),
        *(
            (
                f"command: train_backbone\nsearch: {{{name}: {{choice: {values}}}}}\n",
                f"{name} cannot be searched; it must be the same in all trials",
            )
            for name, values in (
                ("width", "[4, 16]"),
                ("patch", "[2, 4]"),
                ("stem", "[cifar, imagenet]"),
                ("first_block", "[gated, stem]"),
                ("granularity", "[path, block]"),
            )
        ),
    ],
)
def test_other_invalid_sweeps_are_refused(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["timesteps"], "--set timesteps is no setting; write NAME=VALUE"),
        (["=3"], "--set =3 is no setting"),
        (["a=1", "a=2"], "--set gives a twice"),
        (["a=[1"], r"'\[1' is not a value"),
    ],
)
def test_invalid_overrides_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_overrides(words)


def test_errors_of_flags_and_file_are_told_apart(load, tmp_path):
    with pytest.raises(ConfigError, match="yaml with the given flags: timesteps is 'x'; allowed"):
        load(GOOD, {"settings.timesteps": "x"})
    with pytest.raises(ConfigError, match="yaml, line 10: trials is 'six'; allowed"):
        load(GOOD.replace("6", "six"), {"settings.timesteps": 7})
    # Without the flags the file has another fault, which they mend.
    with pytest.raises(ConfigError, match="yaml with the given flags: trials is 0; it must be at"):
        load(
            GOOD.replace("timesteps: 1000", "dataset: /x"), {"settings.backbone": "y", "trials": 0}
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "command: train_gumbel\nsearch:\n  budget: {uniform: [0.001, 1]}\n",
            "line 3: budget may be 0.001, which is not allowed: budget ",
        ),
        (
            "command: train_agent\nsearch:\n  cost_weight_range.0: {loguniform: [0.1, 50]}\n",
            "line 3: cost_weight_range.0 may be 50.0, which is not allowed: the cost weights run f",
        ),
        (
            f"{GRID}objective: {{name: accuracy, budget: 2, budget_unit: ms}}\n",
            "line 5: objective.budget is in ms, but settings.budget_unit is 'percent'",
        ),
    ],
)
def test_values_are_checked_with_the_data_set(load, tmp_path, text, message):
    file, path = load(text), tmp_path / "sweep.yaml"
    with pytest.raises(ConfigError) as caught:
        check_with_dataset(file, load_dataset("digits"), path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_an_objective_alone_may_be_in_milliseconds(load, tmp_path):
    given = "command: train_agent\nsearch: {reward.log_likelihood: {uniform: [0, 1]}}\n"
    file = load(f"{given}objective: {{name: accuracy, budget: 2, budget_unit: ms}}\n")
    check_with_dataset(file, load_dataset("digits"), tmp_path / "sweep.yaml")
