"""Conversion of policies that plain Stable-Baselines3 trained into gates in plain torch."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.envs.spaces import action_space, flatten_observations, observation_space
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import exit_info
from dfs_rl.gating.observation import scaled_budget
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.shared_network import ACTIVATIONS, SharedMLPGate

Policy = BaseAlgorithm | BasePolicy | str | Path
"""Algorithm, its policy, or the file that the algorithm was saved to."""
Normalization = VecNormalize | str | Path
"""Wrapper that normalised the observations of a policy, or the file that it was saved to."""
_ACTORS = ActorCriticPolicy, MaskableActorCriticPolicy
_FLATTENING = CombinedExtractor, FlattenExtractor
_SEEN_ALIKE = 1e-3
"""Rounding tolerance of an observed budget that was normalised."""
_N_COMPARED = 64
"""Number of random observations of each layer on which gate and policy are compared."""
_MOST = 0.98
"""Share of equal actions from which on gate and policy act alike; rounding decides ties."""


def load_policy(policy: Policy) -> tuple[BasePolicy, int]:
    """Return the policy of an algorithm, and the number of decisions that it learned from.

    A saved file can run code. The number of a policy alone is unknown, and 0.

    Raises:
        ConfigError: If it is no policy of Stable-Baselines3.
        CheckpointError: If the file is missing or no saved algorithm.
    """
    if isinstance(policy, BaseAlgorithm):
        return policy.policy, policy.num_timesteps
    if isinstance(policy, BasePolicy):
        return policy, 0
    if not isinstance(policy, str | Path):
        raise ConfigError(
            f"policy is a {type(policy).__name__}; allowed are an algorithm of Stable-Baselines3, "
            "its policy, or the path of a saved one."
        )
    try:
        data, tensors, _ = load_from_zip_file(policy, device="cpu")
        assert data is not None
        spaces = data["observation_space"], data["action_space"]
        loaded: BasePolicy = data["policy_class"](
            *spaces, ConstantSchedule(0.0), **data["policy_kwargs"]
        )
        weights: Any = tensors["policy"]
        loaded.load_state_dict(weights)
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        sentence = f"{policy} is no algorithm that Stable-Baselines3 saved: {error}."
        raise CheckpointError(sentence) from error
    return loaded, int(data["num_timesteps"])


def normalization_of(policy: Policy, given: Normalization | None) -> VecNormalize | None:
    """Return the wrapper that normalises a policy's observations, ``None`` if there is none.

    By default it is that of an algorithm's environment, or the one that rl_zoo3 saves beside an
    algorithm. A saved file can run code.

    Raises:
        ConfigError: If ``given`` is neither a wrapper nor a path, or none is found although the
            algorithm observed normalised values.
        CheckpointError: If the file cannot be read.
    """
    if given is None and isinstance(policy, BaseAlgorithm):
        given = policy.get_vec_normalize_env()
    if given is None and isinstance(policy, str | Path):
        beside = Path(policy).with_suffix("") / "vecnormalize.pkl"
        given = beside if beside.is_file() else None
    if isinstance(given, str | Path):
        try:
            given = pickle.loads(Path(given).read_bytes())
        except (OSError, pickle.UnpicklingError, AttributeError, EOFError) as error:
            raise CheckpointError(f"{given} has no saved VecNormalize: {error}.") from error
    if given is not None and not isinstance(given, VecNormalize):
        raise ConfigError(
            f"normalize is a {type(given).__name__}; allowed are a VecNormalize or the path of a "
            "saved one."
        )
    if given is None and _saw_other_values(policy):
        raise ConfigError(
            "normalize is not given, but the algorithm has observed values outside of its "
            "observation space, as a VecNormalize returns them; give that wrapper or its file."
        )
    return given if given is not None and given.norm_obs else None


def _last_observations(policy: Policy) -> tuple[Any, Any]:
    """Return the observation space of an algorithm and what it saw last, None if unknown."""
    if isinstance(policy, BasePolicy):
        return policy.observation_space, None
    if isinstance(policy, BaseAlgorithm):
        return policy.observation_space, policy._last_obs
    data = load_from_zip_file(policy, device="cpu")[0] or {}
    return data["observation_space"], data.get("_last_obs")


def _saw_other_values(policy: Policy) -> bool:
    """Return whether the last observations of an algorithm lie outside of its space."""
    space, seen = _last_observations(policy)
    if seen is None:
        return False
    parts = [(space[k], v) for k, v in seen.items()] if isinstance(seen, dict) else [(space, seen)]
    return any(
        bool(((values < part.low) | (values > part.high)).any())
        for part, values in parts
        if isinstance(part, gymnasium.spaces.Box)
    )


@torch.no_grad()
def gate_of_policy(
    policy: BasePolicy,
    backbone: GatedBackbone,
    *,
    normalization: VecNormalize | None = None,
    passes: PassSettings = SINGLE_PASS,
    budget: float | None = None,
    budget_conditioning: bool = False,
    name: str = "SB3 policy",
) -> SharedMLPGate:
    """Return the gate that takes the deterministic actions of a policy.

    The settings are those of the environment that trained it: its backbone, the wrapper that
    normalised the observations, its passes and its per-input budget in percent; with
    ``budget_conditioning`` it drew cost weights.

    Raises:
        ConfigError: If the policy has no perceptron as its actor or its action values, fits
            another environment, or costs more than the budget.
    """
    space = observation_space(backbone, budget_conditioning=budget_conditioning, passes=passes)
    _check_policy(policy, space, backbone, passes, budget)
    linears, activation = _perceptron(policy)
    widths = [linear.out_features for linear in linears[:-1]]
    gate = SharedMLPGate(
        backbone.feature_sizes,
        backbone.options,
        widths=widths,
        activation=activation,
        normalizes=normalization is not None,
        feature_macs=backbone.feature_macs,
        hidden=max(widths, default=1),
        budget=budget,
        budget_conditioning=BudgetConditioning() if budget_conditioning else None,
        exits=exit_info(backbone),
        passes=passes,
        name=name,
    )
    columns = _columns(space)
    first, *others = linears
    read = np.concatenate([columns["features"], columns["context"]])
    gate.weight.copy_(first.weight[:, read])
    statistics = None
    if normalization is not None:
        statistics = _statistics(normalization, space, columns)
        for buffer, values in zip((gate.mean, gate.std, gate.limit), statistics, strict=True):
            buffer.copy_(torch.from_numpy(values[read]))
    for layer, size in enumerate(gate.input_sizes):
        # What is the same for all images: the one-hot layer, and features that the layer lacks.
        constant = np.zeros(first.in_features)
        constant[columns["layer"][layer]] = 1.0
        if statistics is not None:
            mean, std, limit = statistics
            constant = ((constant - mean) / std).clip(-limit, limit)
        fixed = np.concatenate([columns["layer"], columns["features"][size:]])
        seen = torch.from_numpy(constant[fixed]).to(first.weight)
        gate.layer_bias[layer].copy_(first.bias + first.weight[:, fixed] @ seen)
    copies = [module for module in gate.rest if isinstance(module, nn.Linear)]
    for copied, linear in zip(copies, others, strict=True):
        copied.weight.copy_(linear.weight)
        copied.bias.copy_(linear.bias)
    if budget is not None:
        gated_budget(backbone.costs, budget, gate_macs=gate.macs)
    _check_actions(policy, gate.eval(), space, normalization)
    return gate


def _check_actions(
    policy: BasePolicy,
    gate: SharedMLPGate,
    space: gymnasium.spaces.Dict,
    normalization: VecNormalize | None,
) -> None:
    """Check that a gate acts as its policy, whose class may compute more than its networks do."""
    equal = []
    space.seed(0)
    for layer, size in enumerate(gate.input_sizes):
        drawn = [space.sample() for _ in range(_N_COMPARED)]
        seen: Any = {key: np.stack([each[key] for each in drawn]) for key in space}
        seen["features"][:, size:], seen["layer"][:] = 0.0, layer  # as in the environment
        features, context = (torch.from_numpy(seen[key]) for key in ("features", "context"))
        chosen = gate.decide(features, layer, context)
        if policy.observation_space != space:
            seen = flatten_observations(space, seen)
        if normalization is not None:
            seen = normalization.normalize_obs(seen)
        equal.append(policy.predict(seen, deterministic=True)[0] == chosen.numpy())
    share = np.mean(equal)
    if share < _MOST:
        raise ConfigError(
            f"policy is a {type(policy).__name__}, but only {share:.0%} of its actions are those "
            "that its networks prefer; a gate needs a policy that decides by nothing else."
        )


def check_environment(
    policy: Policy,
    backbone: GatedBackbone,
    *,
    passes: PassSettings,
    budget: float | None,
    normalization: VecNormalize | None = None,
) -> None:
    """Raise ConfigError if settings differ from the environment that an algorithm has, or had.

    The observations of environments with different settings can have the same shape.
    """
    env = policy.get_env() if isinstance(policy, BaseAlgorithm) else None
    if env is None or isinstance(env.unwrapped, SubprocVecEnv) or not env.has_attr("task"):
        _check_budget_seen(_last_observations(policy)[1], backbone, normalization, budget)
        return
    task = env.get_attr("task", 0)[0]
    for name, theirs, ours in (("passes", task.passes, passes), ("budget", task.budget, budget)):
        if theirs != ours:
            raise ConfigError(f"{name} is {ours}, but the policy's environment has {theirs}.")
    costs = task.backbone.costs
    if costs != backbone.costs:
        raise ConfigError(
            f"the backbone has {backbone.costs.total_macs:,.0f} MACs at the cost "
            f"{backbone.costs.cost_model}, but that of the policy's environment "
            f"{costs.total_macs:,.0f} at {costs.cost_model}; give its own backbone, exits and cost."
        )
    # They tell two networks of one shape apart; one that is not calibrated yet has zeros.
    measured, expected = (one.feature_mean.cpu() for one in (backbone, task.backbone))
    if measured.any() and not torch.equal(measured, expected):
        raise ConfigError(
            "the backbone has other weights than that of the policy's environment, although it is "
            "of the same shape; give its own backbone."
        )


def _check_budget_seen(
    seen: Any,  # noqa: ANN401 - observations of any form
    backbone: GatedBackbone,
    normalization: VecNormalize | None,
    budget: float | None,
) -> None:
    """Check that observations, if there are any, contain a budget."""
    if seen is None:
        return
    if normalization is not None:
        seen = normalization.unnormalize_obs(seen)
    context = seen["context"] if isinstance(seen, dict) else seen  # which begins with the context
    left = 1.0 if budget is None else scaled_budget(backbone.costs, budget, gate_macs=0.0)
    if not np.allclose(context[:, 1], left, atol=_SEEN_ALIKE):
        given = "not given" if budget is None else f"{backbone.costs.cost_text(budget)}"
        raise ConfigError(
            f"budget is {given}, but the algorithm has observed "
            f"{'none' if context[0, 1] == 1.0 else 'another one'}; give that of its environment."
        )


def _check_policy(
    policy: BasePolicy,
    space: gymnasium.spaces.Dict,
    backbone: GatedBackbone,
    passes: PassSettings,
    budget: float | None,
) -> None:
    """Check that a policy can be a gate, for observations in ``space`` or in its flat form."""
    kind, several = type(policy).__name__, passes.limit > 1
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise ConfigError(
            f"policy is a {kind}, which is recurrent; a gate of plain Stable-Baselines3 has no "
            "memory (train_agent --algo recurrent_ppo trains one that has)."
        )
    if not isinstance(policy, (*_ACTORS, DQNPolicy, QRDQNPolicy)):
        raise ConfigError(
            f"policy is a {kind}; allowed are those of PPO, A2C, TRPO, MaskablePPO, DQN and QR-DQN."
        )
    if isinstance(policy, MaskableActorCriticPolicy) and (several or backbone.costs.exits):
        raise ConfigError(
            f"policy is a {kind}, whose masks a gate applies for a budget alone; allowed are a "
            "single pass and a backbone without exits."
        )
    if several and budget is not None:
        raise ConfigError(
            f"budget is {budget:g} and passes is {passes.limit}; a policy that was trained without "
            "the cost of its own network keeps a budget in a single pass alone."
        )
    actions = action_space(backbone, passes)
    if policy.action_space != actions:
        raise ConfigError(
            f"policy has the actions {policy.action_space}; with these passes the backbone has "
            f"{actions}, of the bit options {list(backbone.options)}."
        )
    if policy.observation_space not in (space, gymnasium.spaces.flatten_space(space)):
        raise ConfigError(
            f"policy observes {policy.observation_space}, but on this backbone, with these passes "
            f"and cost_weight_range, an episode shows {space} or its flat form."
        )


def _perceptron(policy: BasePolicy) -> tuple[list[nn.Linear], str]:
    """Return the linear maps from the flat observation to the logits, and their activation."""
    if isinstance(policy, _ACTORS):
        extractor: object = policy.pi_features_extractor
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    elif isinstance(policy, QRDQNPolicy):
        extractor = policy.quantile_net.features_extractor
        modules = [*policy.quantile_net.quantile_net]
        modules[-1] = _mean_over_quantiles(modules[-1], policy.quantile_net.n_quantiles)
    else:
        assert isinstance(policy, DQNPolicy)
        extractor, modules = policy.q_net.features_extractor, [*policy.q_net.q_net]
    linears, activations = modules[::2], modules[1::2]
    kinds = {type(module).__name__ for module in activations} or {"Tanh"}
    changed = [one for one in activations if repr(one) != repr(type(one)())]  # as a LeakyReLU(0.5)
    if (
        type(extractor) not in _FLATTENING
        or not all(isinstance(module, nn.Linear) and module.bias is not None for module in linears)
        or len(kinds) > 1
        or not kinds <= ACTIVATIONS.keys()
        or changed
    ):
        parts = ", ".join([type(extractor).__name__, *map(repr, modules)])
        raise ConfigError(
            f"policy decides by {parts}; a gate needs a CombinedExtractor or FlattenExtractor, and "
            f"linear maps with one activation between them, of {', '.join(ACTIVATIONS)}."
        )
    return linears, kinds.pop()


def _mean_over_quantiles(linear: nn.Linear, n_quantiles: int) -> nn.Linear:
    """Return the map to the action values, the means of the quantiles."""
    mean = nn.Linear(linear.in_features, linear.out_features // n_quantiles)
    mean.weight.copy_(linear.weight.view(n_quantiles, mean.out_features, -1).mean(dim=0))
    mean.bias.copy_(linear.bias.view(n_quantiles, -1).mean(dim=0))
    return mean


def _columns(space: gymnasium.spaces.Dict) -> dict[str, NDArray[np.int64]]:
    """Return the places of each entry in the flat observation, of which the layer is one-hot."""
    columns, start = {}, 0
    for key, part in space.spaces.items():
        size = gymnasium.spaces.flatdim(part)
        columns[key] = np.arange(start, start + size)
        start += size
    return columns


def _statistics(
    normalization: VecNormalize, space: gymnasium.spaces.Dict, columns: dict[str, NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean, standard deviation and bound of each value of the flat observation.

    What stays as it is has 0, 1 and infinity.
    """
    width = gymnasium.spaces.flatdim(space)
    mean, std, limit = np.zeros(width), np.ones(width), np.full(width, np.inf)
    measured: Any = normalization.obs_rms
    for key, found in measured.items() if isinstance(measured, dict) else [(None, measured)]:
        where = slice(None) if key is None else columns[key]
        if found.mean.shape != mean[where].shape:
            raise ConfigError(
                f"normalize has statistics of {list(found.mean.shape)} values, but the observation "
                f"has {list(mean[where].shape)}; give the VecNormalize of the policy's environment."
            )
        mean[where], std[where] = found.mean, np.sqrt(found.var + normalization.epsilon)
        limit[where] = normalization.clip_obs
    return mean, std, limit
