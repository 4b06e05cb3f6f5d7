"""What ``backbone``, ``backbone_weights`` and ``exits`` of the environments make, against what the commands make of the same."""

import gymnasium
import numpy as np
import pytest
import torch

from dfs_rl.backbones import default_digits
from dfs_rl.data import load_dataset
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.envs.gating_vector_env import FractionalSkippingVectorEnv
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.envs.registration import ENV_ID, NETWORK_WIDE_ID, register_envs
from dfs_rl.errors import ConfigError
from dfs_rl.training.custom_model import build_calibrated_backbone
from dfs_rl.utils import trusted_import
from tests.helpers.custom_models import write
from tests.helpers.toy_backbone import ToyBackbone
from tests.helpers.toy_env import toy_image_set, toy_kwargs

OWN = "ownnets:make"


def rewards(env, actions) -> np.ndarray:
    """What one episode of each environment pays, step by step."""
    env.reset(seed=0)
    return np.array([env.step(action)[1] for action in actions])


@pytest.mark.usefixtures("no_allowed_constructors")
def test_a_users_network_is_the_one_that_the_commands_train_gates_for(tmp_path):
    write("ownnets")
    trusted_import.trust_constructor(OWN)
    weights = trusted_import.call_constructor(OWN).state_dict()
    torch.save({**weights, "5.bias": torch.arange(10.0)}, "weights.pt")
    stored = build_calibrated_backbone(OWN, load_dataset("digits"), weights=tmp_path / "weights.pt")
    frozen = stored.backbone.to_inference()
    register_envs()
    given = {"backbone": OWN, "backbone_weights": "weights.pt", "dataset": "digits"}
    single = gymnasium.make(ENV_ID, **given)
    assert np.array_equal(
        rewards(single, [1, 3]), rewards(FractionalSkippingEnv(backbone=frozen), [1, 3])
    )
    batched = gymnasium.make_vec(ENV_ID, num_envs=3, **given)
    actions = np.array([[0, 2, 4], [5, 3, 1]])
    assert np.array_equal(
        rewards(batched, actions),
        rewards(FractionalSkippingVectorEnv(3, backbone=frozen), actions),
    )
    wide = gymnasium.make(NETWORK_WIDE_ID, images=50, **given)
    assert np.array_equal(
        rewards(wide, [2, 5]), rewards(NetworkWideEnv(backbone=frozen, images=50), [2, 5])
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"backbone": OWN}, "calibrated on a train split, but dataset is an ImageSet"),
        ({"backbone_weights": "w.pt"}, "backbone_weights is w.pt, but backbone is ToyBackbone;"),
        (
            {"backbone": ToyBackbone(exits=(1, 3)), "exits": False},
            r"a ToyBackbone with exits after \[1, 3\] layers that cannot be taken away",
        ),
    ],
)
@pytest.mark.parametrize("env", [FractionalSkippingEnv, FractionalSkippingVectorEnv])
def test_what_does_not_go_together_is_refused(env, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        env(**toy_kwargs(dataset=toy_image_set(), **changes))


def test_exits_can_be_left_out_and_stay_with_the_backbone_that_is_given():
    backbone = default_digits()
    backbone.set_exits((1, 3))
    assert FractionalSkippingEnv(backbone=backbone).action_space.n == 7
    single = FractionalSkippingEnv(backbone=backbone, exits=False)
    assert single.action_space.n == 6
    actions = [0, 3, 5, 2, 1, 4]
    plain = FractionalSkippingEnv()
    assert np.array_equal(rewards(single, actions), rewards(plain, actions))
    batched = FractionalSkippingVectorEnv(2, backbone=backbone, exits=False)
    assert batched.single_action_space.n == 6
    assert backbone.costs.exits_after == (1, 3)
    assert backbone.exit_heads is not None
