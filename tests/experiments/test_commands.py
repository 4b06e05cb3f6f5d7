"""What the commands share: refusal of bad input, and settings on disk."""

from importlib import import_module
from pathlib import Path

import pytest

from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.agents.supervised.config import GumbelConfig
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.search_config import TrainCascadeConfig, TrainStaticConfig
from dfs_rl.gating.reward import RewardTerms
from dfs_rl.utils.config import config_bytes, load_config

USUAL = {
    "train_agent": ["--timesteps", "800", "--num-envs", "32", "--device", "cpu"],
    "train_gumbel": ["--timesteps", "1000", "--training.batch-size", "32", "--device", "cpu"],
    "train_static": ["--episodes", "30", "--images", "60", "--device", "cpu"],
    "train_exits": ["--after", "1"],
    "evaluate": ["."],
}
BAD = {
    "train_agent": [
        ("--group-size 5", "group_size must divide num_envs"),
        ("--timesteps 0", "timesteps is 0; it must be at least 1"),
        ("--dataset no/such/folder", "no/such/folder"),
        ("--device abacus", "device is 'abacus'"),
        ("--budget 0.0001", "budget is 0.0001 %, too little"),
        ("--budget 0.3 --passes 1", "give a higher one, or a narrower gate with --hidden."),
        ("--cotrain.batch-size 8", "cotrain.batch_size is 8, but backbone_mode is 'frozen'"),
        ("--latency.batch-size 8", "latency.batch_size is 8 and latency.other_machine false, but"),
        ("--budget 302", "budget is 302 %, but an image costs at most 301.777 %, so it bounds"),
        (
            "--algo maskable_ppo --per-input-budget 101",
            "per_input_budget is 101 %, but an image costs at most 100.",
        ),
        ("--budget 101 --passes 1", "budget is 101 %, but an image costs at most 100.393 %"),
        ("--fixed-budget --val-repeats 3", "val_repeats is 3, but this gate learns for one budget"),
        ("--per-input-budget 0.0001", "budget is 0.0001 %, too little"),
        ("--per-input-budget -1", "per_input_budget is -1.0; it must be above 0"),
        ("--budget 1 --cost-weight 5", "budget is 1 and cost_weight is 5"),
        ("--budget 2 --per-input-budget 1.5", "budget is 2 and per_input_budget is 1.5, which"),
        ("--budget 1 --fixed-budget", "learns for one cost weight"),
        ("--cost-weight 31", "cost_weight is 31; allowed are those"),
        ("--cost-weight-range 3 4 --fixed-budget", "learns for one cost weight"),
        ("--algo dqn --algorithm.buffer-size 0", "buffer_size is 0"),
        ("--cost-weight-range 5 1", "the cost weights run from 5 to 1"),
        ("--backbone nowhere", "nowhere"),
        ("--cost-weight -1", "cost_weight is -1.0; it must be at least 0"),
        ("--algo sarsa", "algo"),
        ("--timesteps 1e15", "timesteps is 1000000000000000; it must be at most 10000000000"),
        (
            "--algo dqn --algorithm.gradient-steps 1e10",
            "algorithm: gradient_steps is 10000000000; it must be at most 100000",
        ),
        ("--hidden 1000000000", "hidden is 1000000000, which takes about "),
        ("--num-envs 3000000000", "num_envs is 3000000000, which takes about "),
        ("--val-repeats 1000000000", "val_repeats is 1000000000, which takes about "),
        ("--threads 100000", "threads is 100000, but this machine has "),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--algo recurrent_ppo --budget 2", "budget is 2 %, too little"),
        ("--algorithm.batch-size 9", "batch_size is 9; it must divide the 224 decisions"),
        ("--algo dqn --group-size 4", "group_size is 4, but DQN learns from"),
        ("--algo dqn --algorithm.buffer-size 9", "one update of 32 episodes of 6 steps"),
        ("--algo maskable_ppo", "algo is 'maskable_ppo', which requires a per-input budget"),
        ("--image-size 16", "takes images as they come"),
        ("--supernet-epochs 5", "supernet_epochs is 5, but digits come with a backbone"),
    ],
    "train_gumbel": [
        ("--budget 0.3", "budget is 0.3 %, too little"),
        ("--budget 101", "budget is 101 %, but an image costs at most 100.393 %"),
        ("--gate lstm", "budget is 1 %, too little"),  # of 10, it costs more than that on digits
        ("--budgets 0.5 0.9", "budget is 1 %, but budgets is 0.5 to 0.9 %"),
        ("--budgets 2 0.5", "the first must be below the second"),
        ("--budgets 0.5 2 --fixed-budget", "a gate learns one budget"),
        ("--budgets 0.5 2 --method dfs", "a gate learns one budget"),
        ("--budget inf", "budget is inf; it must be finite"),
        ("--hidden 0", "hidden is 0; it must be at least 1"),
        ("--hidden 1000000000", "hidden is 1000000000, which takes about "),
        ("--method sarsa", "method"),
        ("--training.temperature 0", "temperature is 0.0; it must be above 0"),
        ("--method blockdrop --gate lstm", "gate is 'lstm', but method 'blockdrop'"),
        ("--method skipnet --training.distillation 1", "training.distillation is 1.0, but method"),
        ("--method skipnet --backbone-mode co-train", "'skipnet' learns on a frozen backbone"),
        ("--cotrain.batch-size 0", "cotrain: batch_size is 0; it must be at least 1"),
        ("--skipnet.pretraining 1", "skipnet: pretraining is 1.0; it must be below 1"),
        ("--blockdrop.bound 0.3", "blockdrop: bound is 0.3; it must be above 0.5"),
        ("--skipnet.ent-coef 0.1", "skipnet.ent_coef is 0.1, but method is 'gumbel'; leave it out"),
        ("--method skipnet --blockdrop.bound 0.9", "or give --method blockdrop"),
        ("--method dfs --val-repeats 2", "val_repeats is 2, but this gate learns for one budget"),
        ("--fixed-budget --val-repeats 2", "val_repeats is 2"),
    ],
    "train_static": [
        ("--budget 0.05", "budget is 0.05 %, too little"),
        ("--budget 101", "budget is 101 %, but an image costs at most 100.101 %"),
        ("--episodes 0", "episodes is 0; it must be at least 1"),
        ("--images 0", "images is 0; it must be at least 1"),
        ("--method sarsa", "method"),
    ],
    "train_cascade": [
        ("--budget 0.05", "budget is 0.05 %; the cheapest pass costs 0.1013 %; give a higher one"),
        ("--budget 301", "budget is 301 %, but an image costs at most 300.304 %"),
        ("--passes 0", "passes is 0; it must be at least 1"),
        ("--passes 6", "passes is 6; it must be at most 5"),
        ("--passes 1 --mirrored", "mirrored is true, but passes is 1; it needs 2 or more"),
        ("--passes 1 --answer mean", "answer is mean, but passes is 1"),
        ("--budget 1 --max-accuracy-drop 1", "budget is 1 and max_accuracy_drop is 1; give one"),
        ("--threads 0", "threads is 0; it must be at least 1"),
    ],
    "train_exits": [
        ("--after 2 6", "allowed are ascending numbers from 0 to 5"),
        ("--after 3 1", "after [3, 1] gated layers"),
        ("--threads 0", "threads is 0"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--weights .", "weights go with a constructor"),
    ],
    "evaluate": [
        ("--batch-size 0", "batch_size is 0"),
        ("--search.finalists 0", "finalists is 0"),
        ("--split train", "split"),
    ],
    "train_backbone": [
        ("--backbone vgg16", "backbone is 'vgg16'; with the recipe supernet allowed are"),
        ("--epochs 0", "epochs is 0; it must be at least 1"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--epochs 1000000000000", "epochs is 1000000000000; it must be at most 100000"),
        (
            "--training.calibration-rounds 10000000000",
            "training: calibration_rounds is 10000000000; it must be at most 100000",
        ),
        ("--width 30000", "width is 30000, which takes about "),
        ("--workers 0", "workers is 0; it must be at least 1"),
        (
            "--recipe supernet --workers 1000 --training.batch-size 1000",
            "workers is 1000, which takes ",
        ),
        (
            "--recipe supernet --workers 9 --training.batch-size 8",
            "workers is 9; at most 8 can share a batch",
        ),
        ("--bits 0 9", "bit options [0, 9] contain 9"),
        ("--bits paper", "bits has 'paper'; allowed are bit widths among [0, 1, 2,"),
        ("--bits 0 x", "bits has 'x'"),
        ("--dataset no/such/folder", "no/such/folder"),
        ("--device quantum", "device is 'quantum'"),
        ("--training.learning-rate -1", "learning_rate is -1.0"),
        ("--training.pad 1000", "training.pad is 1000, but the images are 8 x 8 pixels"),
        ("--training.pad 9", "allowed are 0 to 8 pixels"),
        ("--image-size 3", "image_size is 3; allowed are whole numbers of pixels from 4"),
        ("--recipe adn --bits 4 32", "bits is [4, 32], but a network of"),
        ("--recipe elastic --bits 4 32", "bits is [4, 32], but a network of"),
        ("--recipe elastic --training.batch-size 3", "training.batch_size is 3; with the recipe"),
        ("--recipe adn --first-block always", "first_block is set, which resnet20 with"),
        ("--heads 6", "heads is set, which resnet20 with the recipe elastic has not"),
        ("--backbone vit12 --heads 5", "heads is 5; the width 192 must be a multiple"),
        ("--backbone vit12 --patch 3", "patch is 3, which does not suit images of 8 x 8 pixels"),
        ("--backbone vit8 --recipe adn", "vit3, vit6, vit9, ..., vit48"),
        ("--backbone vit6 --recipe adn --gate-branches", "gate_branches is set, which vit6 with"),
        ("--granularity block", "granularity is set, which resnet20 with the recipe elastic has"),
        ("--stem imagenet", "stem is set, which resnet20 with the recipe elastic has not"),
        ("--training.alpha 0.4", "training.alpha is set, which belongs to the recipe adn"),
        ("--training.feature-weight -1", "feature_weight is -1.0; it must be at least 0"),
        ("--plain --bits 0 4 32", "bits is set, but with --plain nothing is"),
        ("--plain --stem-bits 4", "stem_bits is set, but with --plain nothing is"),
        ("--plain --per-channel", "per_channel is set, but with --plain nothing is"),
        ("--backbone m:f --width 8", "width is set, but the network of m:f has its own"),
        ("--backbone mobilenetv2", "'mobilenetv2', which the recipe adn trains; add"),
        ("--backbone resnet50", "add --recipe adn, or take cifar_resnet50"),
        ("--recipe adn --stem imagenet", "image_size is (8, 8), of which stem and"),
    ],
}


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [(command, flags, words) for command, cases in BAD.items() for flags, words in cases],
)
def test_bad_input_is_refused(refusal, command, flags, words):
    main = import_module(f"dfs_rl.{command}").main
    assert words in refusal(main, [*USUAL.get(command, []), *flags.split()])


@pytest.mark.parametrize(
    "config",
    [
        TrainAgentConfig(
            backbone=Path("net"),
            budget=1.5,
            cost_weight_range=(2.0, 20.0),
            hidden=9,
            reward=RewardTerms(cost_timing="terminal"),
            algorithm=PPOConfig(n_epochs=2),
        ),
        TrainGumbelConfig(budget=1.5, training=GumbelConfig(distillation=1.0)),
        TrainStaticConfig(backbone=Path("net"), method="td3", budget=1.5, episodes=7),
        TrainCascadeConfig(backbone=Path("net"), budget=1.5),
        TrainBackboneConfig(bits="dfs", flip=True),
    ],
    ids=lambda config: config.KIND,
)
def test_settings_survive_the_run_folders_yaml(tmp_path, config):
    (tmp_path / "config.yaml").write_bytes(config_bytes(config))
    assert load_config(tmp_path / "config.yaml", type(config)) == config
