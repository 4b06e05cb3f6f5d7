"""Batched episodes: the shared implementation of all forms of the environment.

Episodes that start together run as one batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.envs.spaces import EpisodeResult, ObservationBatch, Transition
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.gating.action_masks import action_masks
from dfs_rl.gating.early_exit import advance
from dfs_rl.gating.execution import ExecutionState, run_head, run_stem
from dfs_rl.gating.model import bits_of
from dfs_rl.gating.observation import Observation, observe, terminal_observation
from dfs_rl.gating.reward import score_predictions, step_cost, terminal_reward

_ALL = slice(None)


class _Cohort(NamedTuple):
    """Episodes that started together and have not ended, all at the same layer.

    Attributes:
        state: Execution state of the episodes.
        rows: Indices of the episodes, int64 ``[n]``; ``None`` for all, in order.
    """

    state: ExecutionState
    rows: torch.Tensor | None

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the cohort's rows of a tensor with a row for every episode."""
        return values if self.rows is None else values[self.rows]

    def episodes_of(self, members: torch.Tensor | None) -> torch.Tensor | None:
        """Return the episode indices of members of the cohort; ``None`` stands for all."""
        if self.rows is None or members is None:
            return self.rows if members is None else members
        return self.rows[members]


class _Finished(NamedTuple):
    """Episodes that reach an answer.

    Attributes:
        rows: Indices of the episodes, int64 ``[n]``; ``None`` for all, in order.
        logits: float32 ``[n, classes]``.
        options: Options of the episodes, int64 ``[n, layers]``.
        spent: Total cost as a fraction, float64 ``[n]``.
        cost: Cost of the last step as a fraction, float64 ``[n]``.
    """

    rows: torch.Tensor | None
    logits: torch.Tensor
    options: torch.Tensor
    spent: torch.Tensor
    cost: torch.Tensor


class _PartialObservation(NamedTuple):
    """Observation of the episodes ``rows``, int64 ``[n]``; ``None`` for all, in order."""

    observation: Observation
    rows: torch.Tensor | None


class BatchedEpisodes:
    """Batch of ``n`` episodes on one frozen backbone; episodes that start together share a cohort.

    Args:
        task: Backbone, images, reward weights and budget.
        n: Number of episodes.

    Attributes:
        indices: Image of each episode, int64 ``[n]``.
        preferences: Preference of each episode, float64 ``[n]``; ``None`` without budget
            conditioning.
        started: True after the first reset; other attributes are undefined before it.
        ended: Mask of the episodes that have ended or never started, bool ``[n]``.
        predictions: Predicted class of each ended episode, -1 for truncated ones, int64 ``[n]``.
        probabilities: Probability of the predicted class, float32 ``[n]``.
    """

    def __init__(self, task: Task, n: int) -> None:
        if n < 1:
            raise ConfigError(f"num_envs is {n}; at least 1 is needed.")
        self.n = n
        self.started = False
        self.ended: NDArray[np.bool_] = np.ones(n, dtype=np.bool_)
        self.predictions: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.probabilities: NDArray[np.float32] = np.zeros(n, dtype=np.float32)
        self._cohorts: list[_Cohort] = []
        self.set_task(task)

    def set_task(self, task: Task) -> None:
        """Set another task; the episodes must be reset or replayed before the next step."""
        self.task = task
        self._device = task.images.images.device
        self._gated_budget = task.gated_budget

    def require_reset(self) -> None:
        """Raise an error before the first reset.

        Raises:
            gymnasium.error.ResetNeeded: If no episode has started.
        """
        if not self.started:
            raise gymnasium.error.ResetNeeded("no episode was begun: call reset() first.")

    @property
    def options(self) -> NDArray[np.int64]:
        """Options of the episodes so far, int64 ``[n, layers]``; 0 for layers not yet reached."""
        options = self._options.clone()
        for state, rows in self._cohorts:
            options[_ALL if rows is None else rows] = state.options
        return _to_numpy(options)

    @property
    def layers(self) -> NDArray[np.int64]:
        """Next layer of each episode, int64 ``[n]``.

        An ended episode has the number of layers that it passed.
        """
        layers = self.task.backbone.costs.n_layers_run(self._options)
        for state, rows in self._cohorts:
            layers[_ALL if rows is None else rows] = state.layer
        return _to_numpy(layers)

    @property
    def cost_weight(self) -> NDArray[np.float64] | None:
        """Cost weight of each episode, float64 ``[n]``; ``None`` without budget conditioning."""
        return None if self._cost_weight is None else _to_numpy(self._cost_weight)

    @property
    def computation(self) -> NDArray[np.float64]:
        """Percent spent so far, never-gated parts included, float64 ``[n]``."""
        spent = self._spent.clone()
        for state, rows in self._cohorts:
            spent[_ALL if rows is None else rows] = state.spent
        return 100.0 * (_to_numpy(spent) + self.task.backbone.costs.fixed_cost())

    @torch.inference_mode()
    def reset(
        self,
        indices: NDArray[np.int64],
        preferences: NDArray[np.float64] | None = None,
        *,
        which: NDArray[np.int64] | None = None,
    ) -> ObservationBatch:
        """Start episodes on images of the split and run the stem.

        Args:
            indices: Image of each episode that starts, int64 ``[started]``.
            preferences: Preference of each of them, float64 ``[started]``; ``None`` without budget
                conditioning.
            which: Indices of the episodes that start, ended or not, int64 ``[started]``; ``None``
                for all.

        Returns:
            The first observation of these episodes.

        Raises:
            ConfigError: If the number of indices is wrong, or an index is out of range.
        """
        n_images, n_begun = len(self.task.images), self.n if which is None else len(which)
        if indices.shape != (n_begun,) or indices.min() < 0 or indices.max() >= n_images:
            raise ConfigError(
                f"image index {indices.tolist()} is not allowed; needed are {n_begun} numbers from "
                f"0 to {n_images - 1}."
            )
        self.started = True
        images = self.task.images
        picked = torch.from_numpy(indices).to(self._device)
        if which is None:
            rows = None
            self._reset_all(indices, preferences, images.labels[picked])
        else:
            rows = torch.from_numpy(which).to(self._device)
            self._reset_some(which, indices, preferences)
            self._labels[rows] = images.labels[picked]
        cohort = _Cohort(run_stem(self.task.backbone, images.images[picked]), rows)
        self._cohorts.append(cohort)
        return _batch([_PartialObservation(self._observe(cohort), None)], n_begun)

    @torch.inference_mode()
    def advance(self, actions: NDArray[np.integer[Any]]) -> Transition:
        """Apply ``actions[i]`` to episode ``i``: run the next layer, or take the exit.

        Ended episodes stay unchanged.
        """
        chosen = torch.from_numpy(self._checked(actions)).to(self._device)
        rewards = torch.zeros(self.n, dtype=torch.float64, device=self._device)
        seen, results, cohorts = [], [], []
        for cohort in self._cohorts:
            before, layer = cohort.state.spent, cohort.state.layer
            state, remaining, exited = advance(
                self.task.backbone, cohort.state, cohort.gather(chosen), reuse=True
            )
            if exited is not None:
                cost = exited.spent - before[exited.rows]
                rows = cohort.episodes_of(exited.rows)
                end = _Finished(rows, exited.logits, exited.options, exited.spent, cost)
                results.append(self._finish(end, rewards))
                seen.append(_PartialObservation(self._terminal_observation(end, layer), rows))
            going = _Cohort(state, cohort.episodes_of(remaining))
            if len(state.spent) == 0:
                continue
            cost = state.spent - (before if remaining is None else before[remaining])
            if state.layer == self.task.backbone.costs.n_layers:
                logits = run_head(self.task.backbone, state)
                end = _Finished(going.rows, logits, state.options, state.spent, cost)
                results.append(self._finish(end, rewards))
            else:
                cohorts.append(going)
                rewards[_ALL if going.rows is None else going.rows] = -self._step_cost(
                    cost, going.rows
                )
            seen.append(_PartialObservation(self._observe(going), going.rows))
        self._cohorts = cohorts
        return Transition(_batch(seen, self.n), _to_numpy(rewards), _concatenate(results))

    @torch.inference_mode()
    def truncate(self, which: NDArray[np.int64]) -> None:
        """End running episodes without an answer.

        Args:
            which: Indices of the episodes, int64 ``[stopped]``.
        """
        options, layers = self.options, self.layers[which]
        for state, rows in self._cohorts:
            self._spent[_ALL if rows is None else rows] = state.spent
        for episode, layer in zip(which, layers, strict=True):
            options[episode, layer:] = self.task.backbone.costs.exit_action
        self._options = torch.from_numpy(options).to(self._device)
        self.ended[which] = True
        self.predictions[which] = -1
        others = torch.from_numpy(~self.ended).to(self._device)
        self._cohorts = [c for c in (_filter_cohort(c, others) for c in self._cohorts) if c]

    @torch.inference_mode()
    def replay(
        self,
        indices: NDArray[np.int64],
        options: NDArray[np.int64],
        preferences: NDArray[np.float64] | None = None,
    ) -> ObservationBatch:
        """Start all episodes and replay their options, to restore them without rewards.

        Args:
            indices: Image of each episode, int64 ``[n]``.
            options: Options so far, int64 ``[n, steps]``.
            preferences: Preference of each episode, float64 ``[n]``; ``None`` without budget
                conditioning.

        Returns:
            The last observation.
        """
        observation = self.reset(indices, preferences)
        for actions in options.T:
            observation = self.advance(actions).observation
        return observation

    @torch.inference_mode()
    def action_masks(self) -> NDArray[np.bool_]:
        """Return the actions that keep the cheapest way to an answer within the budget.

        In an ended episode all actions are allowed, because none has an effect.

        Returns:
            bool ``[n, actions]``; the exit action is allowed only at an exit.
        """
        self.require_reset()
        task = self.task
        shape = (self.n, task.backbone.costs.n_actions)
        masks = torch.ones(shape, dtype=torch.bool, device=self._device)
        for state, rows in self._cohorts:
            masks[_ALL if rows is None else rows] = action_masks(
                task.backbone.costs, state.layer, state.spent, task.budget, gate_macs=task.gate_macs
            )
        return _to_numpy(masks)

    def _reset_all(
        self,
        indices: NDArray[np.int64],
        preferences: NDArray[np.float64] | None,
        labels: torch.Tensor,
    ) -> None:
        self.indices, self.preferences, self._labels = indices, preferences, labels
        self.ended = np.zeros(self.n, dtype=np.bool_)
        self._cohorts = []
        self._options = labels.new_zeros(self.n, self.task.backbone.costs.n_layers)
        self._spent: torch.Tensor = labels.new_zeros(self.n, dtype=torch.float64)
        self._update_conditioning()

    def _reset_some(
        self,
        which: NDArray[np.int64],
        indices: NDArray[np.int64],
        preferences: NDArray[np.float64] | None,
    ) -> None:
        # Copies keep arrays that were returned before unchanged.
        self.indices = self.indices.copy()
        self.indices[which] = indices
        if preferences is not None and self.preferences is not None:
            self.preferences = self.preferences.copy()
            self.preferences[which] = preferences
        started = np.zeros(self.n, dtype=np.bool_)
        started[which] = True
        if not self.ended[which].all():
            others = torch.from_numpy(~started).to(self._device)
            self._cohorts = [c for c in (_filter_cohort(c, others) for c in self._cohorts) if c]
        self.ended = self.ended & ~started
        self._update_conditioning()

    def _update_conditioning(self) -> None:
        """Cache the preferences as gate inputs and the cost weights of the episodes."""
        range_ = self.task.cost_weight_range
        if range_ is None:
            self._preferences_seen = self._cost_weight = None
            return
        assert self.preferences is not None, "with a dial, each walk has its position"
        exact = torch.from_numpy(self.preferences).to(self._device)
        self._preferences_seen, self._cost_weight = exact.float(), range_.at(exact)

    def _step_cost(self, cost: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Return the cost that is subtracted from the rewards of a step, float64."""
        return step_cost(self.task.reward, cost, cost_weight=_part(self._cost_weight, rows))

    def _finish(self, end: _Finished, rewards: torch.Tensor) -> EpisodeResult:
        """Store the results of episodes and write their last rewards into ``rewards``."""
        costs, rows = self.task.backbone.costs, end.rows
        labels = self._labels if rows is None else self._labels[rows]
        scores = score_predictions(end.logits, labels)
        place = _ALL if rows is None else rows
        rewards[place] = -self._step_cost(end.cost, rows) + terminal_reward(
            self.task.reward,
            scores,
            end.spent,
            gated_budget=self._gated_budget,
            cost_weight=_part(self._cost_weight, rows),
        )
        self._options[place], self._spent[place] = end.options, end.spent
        episodes = np.arange(self.n) if rows is None else _to_numpy(rows)
        probabilities = end.logits.softmax(dim=1)
        self.ended[episodes] = True
        self.predictions[episodes] = _to_numpy(scores.prediction)
        self.probabilities[episodes] = _to_numpy(probabilities.amax(dim=1))
        return EpisodeResult(
            episodes=episodes,
            image=self.indices[episodes],
            label=_to_numpy(labels),
            prediction=_to_numpy(scores.prediction),
            correct=_to_numpy(scores.correct),
            computation=100.0 * (_to_numpy(end.spent) + costs.fixed_cost()),
            bits=_to_numpy(bits_of(costs, end.options)),
            probabilities=_to_numpy(probabilities),
            n_layers_run=_to_numpy(costs.n_layers_run(end.options)) if costs.exits else None,
        )

    def _observe(self, cohort: _Cohort) -> Observation:
        return observe(
            self.task.backbone,
            cohort.state,
            budget=self.task.budget,
            gate_macs=self.task.gate_macs,
            preferences=_part(self._preferences_seen, cohort.rows),
        )

    def _terminal_observation(self, end: _Finished, layer: int) -> Observation:
        return terminal_observation(
            self.task.backbone,
            end.options,
            end.spent,
            layer=layer,
            budget=self.task.budget,
            gate_macs=self.task.gate_macs,
            preferences=_part(self._preferences_seen, end.rows),
        )

    def _checked(self, actions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Validate the actions and return them as a contiguous int64 array."""
        n_actions = self.task.backbone.costs.n_actions
        fits = actions.shape == (self.n,) and actions.dtype.kind in "iu"
        if not fits or actions.min() < 0 or actions.max() >= n_actions:
            raise gymnasium.error.InvalidAction(
                f"action {actions.tolist()} is not allowed; needed are {self.n} whole numbers from "
                f"0 to {n_actions - 1}."
            )
        return np.ascontiguousarray(actions, dtype=np.int64)


def _filter_cohort(cohort: _Cohort, allowed: torch.Tensor) -> _Cohort | None:
    """Return the allowed episodes of a cohort; ``None`` if there are none.

    Args:
        cohort: The cohort.
        allowed: Mask over all episodes, bool.
    """
    members = cohort.gather(allowed).nonzero()[:, 0]
    if len(members) == 0:
        return None
    hidden, layer, options, spent = cohort.state
    state = ExecutionState(hidden[members], layer, options[members], spent[members])
    return _Cohort(state, cohort.episodes_of(members))


def _part(values: torch.Tensor | None, rows: torch.Tensor | None) -> torch.Tensor | None:
    return values if values is None or rows is None else values[rows]


def _batch(seen: Sequence[_PartialObservation], n: int) -> ObservationBatch:
    """Return the observation of ``n`` episodes; zeros for episodes without a new one."""
    if len(seen) == 1 and seen[0].rows is None:
        observation = seen[0].observation
        return {
            "features": _to_numpy(observation.features),
            "layer": np.full(n, observation.layer, dtype=np.int64),
            "context": _to_numpy(observation.context),
        }
    assert seen, "a step is made where a walk is under way"
    first = seen[0].observation
    features = first.features.new_zeros(n, first.features.shape[1])
    context = first.context.new_zeros(n, first.context.shape[1])
    layers = np.zeros(n, dtype=np.int64)
    for observation, rows in seen:
        assert rows is not None, "all walks are told of once"
        features[rows], context[rows] = observation.features, observation.context
        layers[_to_numpy(rows)] = observation.layer
    return {"features": _to_numpy(features), "layer": layers, "context": _to_numpy(context)}


def _concatenate(results: Sequence[EpisodeResult]) -> EpisodeResult | None:
    """Return results as one batch; ``None`` for an empty sequence."""
    if len(results) < 2:  # noqa: PLR2004 - nothing to join
        return results[0] if results else None
    fields: list[Any] = [
        None if parts[0] is None else np.concatenate(parts) for parts in zip(*results, strict=True)
    ]
    return EpisodeResult(*fields)


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()
