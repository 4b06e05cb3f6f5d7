"""A sweep's file: what is wrong in it is said in one sentence with its line, before anything is started."""

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.command import SweepConfig, resolved
from dfs_rl.sweeping.loading import check_with_dataset, load_sweep_file, parse_overrides
from dfs_rl.sweeping.space import Domain

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


def test_a_good_file_is_read(tmp_path):
    file = load(tmp_path)
    assert file.search["reward.log_likelihood"] == Domain(uniform=(0.0, 1.0))
    assert file.defaults == {"reward.log_likelihood": 0.5, "cost_weight_range.0": 0.1}
    config = file.config({"cost_weight_range.0": 0.7, "reward.log_likelihood": 0.2}, seed=5)
    assert config.cost_weight_range == (0.7, 30.0)
    assert config.reward.log_likelihood == 0.2
    assert (config.algorithm.ent_coef, config.timesteps, config.seed) == (0.01, 1000, 5)


def test_settings_beside_the_file_win(tmp_path):
    changes = parse_overrides(["timesteps=77", "algorithm.ent_coef=0.5", "num-envs=64"])
    file = load(tmp_path, settings=changes, overrides={"trials": 2, "retrain.seeds": 1})
    assert (file.base["timesteps"], file.base["algorithm"]["ent_coef"]) == (77, 0.5)
    assert (file.base["num_envs"], file.trials, file.retrain.seeds) == (64, 2, 1)


def test_what_lies_on_the_disk_is_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").touch()
    load(tmp_path)
    given = ("backbone=mynets:make", "weights=net.pt")
    settings = resolved(SweepConfig(file=tmp_path / "sweep.yaml", set=given)).settings
    assert settings["weights"] == str(tmp_path / "net.pt")
    assert settings["backbone"] == "mynets:make"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trials: 6", "trials: six", ", line 10: trials is 'six'; allowed is a whole number"),
        ("trials: 6", "trails: 6", ", line 10: trails is not a setting; the closest one is trials"),
        ("trials: 6", "trials: 0", ", line 10: trials is 0; it must be at least 1"),
        ("  timesteps:", "  timestep:", ", line 4: timestep is not a setting; the closest one is"),
        (
            "    ent_coef: 0.01",
            "    ent_coef: x",
            ", line 6: algorithm.ent_coef is 'x'; allowed is a number",
        ),
        (
            "{uniform: [0, 1]}",
            "{uniform: [1, 0]}",
            ", line 8: search.reward.log_likelihood: uniform",
        ),
        (
            "{uniform: [0, 1]}",
            "{normal: [0, 1]}",
            ", line 8: search.reward.log_likelihood.normal is",
        ),
        (
            "{uniform: [0, 1]}",
            "{uniform: [0, 1, 2]}",
            ", line 8: search.reward.log_likelihood.unif",
        ),
        (
            "reward.log_lik",
            "reward.loglik",
            ", line 8: reward.loglikelihood is not a setting of tr",
        ),
        (
            "cost_weight_range.0",
            "cost_weight_range.2",
            ", line 9: cost_weight_range.2 is not a setting of train_a",
        ),
        (
            "cost_weight_range.0",
            "seed",
            ", line 9: seed cannot be searched; trials must agree in it",
        ),
        ("  timesteps: 1000", "  run_dir: x", ", line 3: settings has run_dir, which the sweep"),
        ("  timesteps: 1000", "  dataset: /x", ", line 3: settings has data set '/x' but no backb"),
        ("trials: 6", "objective: {name: loss}", ", line 10: objective.name is 'loss'; a training"),
        ("trials: 6", "objective: {name: best}", ", line 10: objective.name is 'best'; allowed is"),
        (
            "trials: 6",
            "objective: {name: pareto_front}",
            ", line 10: objective.name is 'pareto_front', but",
        ),
        ("trials: 6", "searcher: nsga2", ", line 10: searcher is 'nsga2', but hypervolume is one"),
        (
            "trials: 6",
            "scheduler: {name: pbt}",
            ", line 10: scheduler.name is 'pbt', which changes",
        ),
        ("trials: 6", "scheduler: {grace: 2}", ", line 10: scheduler.grace is 2; it must be below"),
        (
            "trials: 6",
            "resources: {cpus: 0}",
            ", line 10: resources.cpus is 0; it must be above 0",
        ),
        ("trials: 6", "stop: {retries: -1}", ", line 10: stop.retries is -1; it must be at least"),
        (
            "command: train_agent",
            "command: train",
            ", line 2: command is 'train'; allowed is one of",
        ),
        (
            "{uniform: [0, 1]}",
            "{grid: [0, 1]}",
            ": searcher is 'tpe', but reward.log_likelihood is",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, old, new, said):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'sweep.yaml'}{said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
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
            "take a lower one",
        ),
        (
            "command: train_agent\nsettings: [1]\nsearch: {algorithm.ent_coef: {uniform: [0, 1]}}\n",
            "settings is .1.; allowed is a mapping",
        ),
    ],
)
def test_settings_that_no_trial_could_have_are_refused(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("trials: 4", "trials is 4, but the grids have 3 combinations; give a multiple of that"),
        ("trials: 6", "grids have 3 combinations and nothing else is searched; give 3"),
    ],
)
def test_grids_are_tried_in_full(tmp_path, rest, said):
    text = "command: train_gumbel\nsearcher: random\nsearch: {method: {grid: [gumbel, dfs, skipnet]}}\n"
    with pytest.raises(ConfigError, match=said):
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
    ("more", "said"),
    [
        ("  num_envs: {choice: [64, 128]}\n", "num_envs must be uniform or loguniform"),
        ("seeds: 2\n", "there are 24 trials of 2 seeds"),
        ("trials: 1\n", "there are 1 trials of 1 seeds"),
    ],
)
def test_a_population_needs_what_can_change_in_mid_training(tmp_path, more, said):
    assert load(tmp_path, POPULATION).scheduler.is_population
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, POPULATION + more)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["timesteps"], "--set timesteps is no setting; write NAME=VALUE"),
        (["=3"], "--set =3 is no setting"),
        (["a=1", "a=2"], "--set gives a twice"),
        (["a=[1"], r"'\[1' is not a value"),
    ],
)
def test_bad_changes_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            (
                "command: train_gumbel\nsettings: {fixed_budget: true}\nsearch:\n  budget: {uniform: "
                "[0.001, 1]}\n"
            ),
            "line 4: budget may be 0.001, which is not allowed: budget ",
        ),
        (
            "command: train_agent\nsearch:\n  cost_weight_range.0: {loguniform: [0.1, 50]}\n",
            (
                "line 3: cost_weight_range.0 may be 50.0, which is not allowed: the cost weights run "
                "from 50"
            ),
        ),
    ],
)
def test_what_only_a_training_tells_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    file = load_sweep_file(path)
    with pytest.raises(ConfigError) as caught:
        check_with_dataset(file, load_dataset("digits"), path)
    assert str(caught.value).startswith(f"{path}, {said}")
