"""Sweep files: settings, and errors in one sentence with file and line."""

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.config import SweepConfig
from dfs_rl.sweeping.loading import check_with_dataset, load_sweep_file, parse_overrides
from dfs_rl.sweeping.space import Domain
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


def load(tmp_path, text=GOOD, **kwargs):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return load_sweep_file(path, **kwargs)


def test_valid_file_is_read(tmp_path):
    file = load(tmp_path)
    assert file.search["reward.log_likelihood"] == Domain(uniform=(0.0, 1.0))
    assert file.defaults == {"reward.log_likelihood": 0.5, "cost_weight_range.0": 0.1}
    config = file.config({"cost_weight_range.0": 0.7, "reward.log_likelihood": 0.2}, seed=5)
    assert config.cost_weight_range == (0.7, 30.0)
    assert config.reward.log_likelihood == 0.2
    assert (config.algorithm.ent_coef, config.timesteps, config.seed) == (0.01, 1000, 5)


def test_flags_override_the_file(tmp_path):
    changes = parse_overrides(["timesteps=77", "algorithm.ent_coef=0.5", "num-envs=64"])
    file = load(tmp_path, settings=changes, overrides={"trials": 2, "retrain.seeds": 1})
    assert (file.base["timesteps"], file.base["algorithm"]["ent_coef"]) == (77, 0.5)
    assert (file.base["num_envs"], file.trials, file.retrain.seeds) == (64, 2, 1)


def test_resolved_sweep_is_read_again(tmp_path):
    file = load(tmp_path)
    assert load(tmp_path, sweep_yaml(file)) == file


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").touch()
    load(tmp_path)
    given = ("backbone=mynets:make", "weights=net.pt")
    settings = resolved(SweepConfig(file=tmp_path / "sweep.yaml", set=given)).settings
    assert settings["weights"] == str(tmp_path / "net.pt")
    assert settings["backbone"] == "mynets:make"


DOMAIN = "{uniform: [0, 1]}"
RATE = "search.reward.log_likelihood"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("trials: 6", "trials: six", 10, "trials is 'six'; allowed is a whole number"),
        ("trials: 6", "trails: 6", 10, "trails is not a setting; the closest one is trials"),
        ("trials: 6", "trials: 0", 10, "trials is 0; it must be at least 1"),
        ("  timesteps:", "  timestep:", 4, "timestep is not a setting; the closest one is"),
        ("ent_coef: 0.01", "ent_coef: x", 6, "algorithm.ent_coef is 'x'; allowed is a number"),
        (DOMAIN, "{uniform: [1, 0]}", 8, f"{RATE}: uniform is 1 to 0"),
        (DOMAIN, "{normal: [0, 1]}", 8, f"{RATE}.normal is not a setting"),
        (DOMAIN, "{uniform: [0, 1, 2]}", 8, f"{RATE}.uniform is [0, 1, 2]; allowed is a list"),
        ("reward.log_lik", "reward.loglik", 8, "reward.loglikelihood is not a setting of train_a"),
        ("range.0", "range.2", 9, "cost_weight_range.2 is not a setting of train_a"),
        ("cost_weight_range.0", "seed", 9, "seed cannot be searched; it must be the same"),
        ("timesteps: 1000", "run_dir: x", 3, "settings has run_dir, which the sweep"),
        ("timesteps: 1000", "dataset: /x", 3, "settings has data set '/x' but no backbone"),
        ("trials: 6", "objective: {name: loss}", 10, "objective.name is 'loss'; allowed is"),
        ("trials: 6", "objective: {name: best}", 10, "objective.name is 'best'; allowed is"),
        ("trials: 6", "objective: {name: pareto_front}", 10, "objective.name is 'pareto_front',"),
        ("trials: 6", "searcher: nsga2", 10, "searcher is 'nsga2', but hypervolume is one"),
        ("trials: 6", "scheduler: {name: pbt}", 10, "scheduler.name is 'pbt', which changes"),
        ("trials: 6", "scheduler: {grace: 2}", 10, "scheduler.grace is 2; it must be below"),
        ("trials: 6", "resources: {cpus: 0}", 10, "resources.cpus is 0; it must be above 0"),
        ("trials: 6", "stop: {retries: -1}", 10, "stop.retries is -1; it must be at least"),
        ("train_agent", "train", 2, "command is 'train'; allowed is one of"),
        (DOMAIN, "{grid: [0, 1]}", None, "searcher is 'tpe', but reward.log_likelihood is"),
    ],
)
def test_errors_name_the_line(tmp_path, old, new, line, message):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    where = tmp_path / "sweep.yaml" if line is None else f"{tmp_path / 'sweep.yaml'}, line {line}"
    assert str(caught.value).startswith(f"{where}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            (
                "command: train_backbone\nsettings: {workers: 2}\nsearch: {training.lr: {uniform: "
                "[0.01, 1]}}\n"
            ),
            "a trial is one process",
        ),
        (
            (
                "command: train_agent\nsettings: {seed: 4294967295}\nsearch: {algorithm.ent_coef: "
                "{uniform: [0, 1]}}\n"
            ),
            "take a lower seed",
        ),
        (
            (
                "command: train_agent\nsettings: [1]\nsearch: "
                "{algorithm.ent_coef: {uniform: [0, 1]}}\n"
            ),
            "settings is .1.; allowed is a mapping",
        ),
    ],
)
def test_settings_without_a_valid_trial_are_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("trials: 4", "trials is 4, but the grids have 3 combinations; give a multiple of that"),
        ("trials: 6", "grids have 3 combinations and nothing else is searched; give 3"),
    ],
)
def test_grids_need_all_combinations(tmp_path, rest, message):
    text = (
        "command: train_gumbel\nsearcher: random\n"
        "search: {method: {grid: [gumbel, dfs, skipnet]}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"{text}{rest}\n")
    assert load(tmp_path, f"{text}trials: 3\n").combinations == 3


POPULATION = """\
command: train_agent
searcher: random
scheduler: {name: pbt}
search:
  algorithm.ent_coef: {uniform: [0, 1]}
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("  num_envs: {choice: [64, 128]}\n", "num_envs must be uniform or loguniform"),
        ("seeds: 2\n", "there are 24 trials of 2 seeds"),
        ("trials: 1\n", "there are 1 trials of 1 seeds"),
    ],
)
def test_populations_need_continuous_settings(tmp_path, more, message):
    assert load(tmp_path, POPULATION).scheduler.is_population
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, POPULATION + more)


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            (
                "command: train_gumbel\nsettings: {fixed_budget: true}\nsearch:\n  budget: "
                "{uniform: "
                "[0.001, 1]}\n"
            ),
            "line 4: budget may be 0.001, which is not allowed: budget ",
        ),
        (
            "command: train_agent\nsearch:\n  cost_weight_range.0: {loguniform: [0.1, 50]}\n",
            (
                "line 3: cost_weight_range.0 may be 50.0, which is not allowed: the cost weights "
                "run "
                "from 50"
            ),
        ),
    ],
)
def test_values_are_checked_with_the_data_set(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    file = load_sweep_file(path)
    with pytest.raises(ConfigError) as caught:
        check_with_dataset(file, load_dataset("digits"), path)
    assert str(caught.value).startswith(f"{path}, {message}")
