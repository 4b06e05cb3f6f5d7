"""Batched episodes: the shared implementation of all forms of the environment."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.envs.rendering import draw_episode
from dfs_rl.envs.sampling import ALL, ImageSampler, StreamIndices
from dfs_rl.envs.spaces import (
    EpisodeResult,
    ObservationBatch,
    concatenate_results,
    final_info,
    merge_observations,
    observation_arrays,
    per_environment,
    to_numpy,
)
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.gating.action_masks import action_masks, end_masks
from dfs_rl.gating.execution import (
    ExecutionState,
    Finished,
    advance,
    concatenate_states,
    gather_state,
    run_stem,
)
from dfs_rl.gating.observation import Observation, observe
from dfs_rl.gating.passes import PassHistory
from dfs_rl.gating.reward import score_predictions, step_cost, terminal_reward


class BatchedEpisodes:
    """Batch of ``n`` episodes on one frozen backbone.

    Episodes that start together share an execution state, so each layer runs once for all of them.
    Its ``rows`` are the indices of the episodes, ``None`` for all.

    Args:
        task: Backbone, images, reward weights and budget.
        n: Number of episodes.
        group_size: Number of consecutive episodes that share image and cost weight.

    Attributes:
        sampler: Random streams of images and preferences, one for each group.
        observation: Observation of all episodes; zeros for those that ended before the last step.
        indices: Image of each episode, int64 ``[n]``.
        preferences: Preference of each episode, float64 ``[n]``, with budget conditioning.
        cost_weight: Cost weight of each episode, likewise.
        started: True after the first reset.
        ended: True for episodes that have ended or never started, bool ``[n]``.
        layers: Number of layers that each episode passed in its present pass, int64 ``[n]``.
        steps: Number of steps of each episode so far, int64 ``[n]``.
        predictions: Predicted class of each ended episode, -1 for truncated ones, int64 ``[n]``.
        probabilities: Probability of the predicted class, float32 ``[n]``.
    """

    def __init__(self, task: Task, n: int, *, group_size: int = 1) -> None:
        self.task = task
        self.n = n
        self.sampler = ImageSampler(n, group_size)
        self.started = False
        self.observation: ObservationBatch = {}
        self.indices: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.ended: NDArray[np.bool_] = np.ones(n, dtype=np.bool_)
        self.layers: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.steps: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        limit, n_layers = task.passes.limit, task.backbone.costs.n_layers
        # The last pass has no step at its end.
        self._actions: NDArray[np.int64] = np.zeros((n, limit * (n_layers + 1) - 1), dtype=np.int64)
        self.predictions: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.probabilities: NDArray[np.float32] = np.zeros(n, dtype=np.float32)
        self._device = task.images.images.device
        self._states: list[ExecutionState] = []
        self._history: PassHistory | None = None
        self.preferences: NDArray[np.float64] | None = None
        self.cost_weight: NDArray[np.float64] | None = None
        self._cost_weight: torch.Tensor | None = None
        self._gate_preferences: torch.Tensor | None = None

    def require_reset(self) -> None:
        """Raise ``gymnasium.error.ResetNeeded`` if no episode has started."""
        if not self.started:
            raise gymnasium.error.ResetNeeded("no episode has started: call reset() first.")

    @property
    def actions(self) -> list[list[int]]:
        """Actions of each episode so far."""
        rows = zip(self._actions, self.steps, strict=True)
        return [actions[:steps].tolist() for actions, steps in rows]

    def start(
        self,
        which: NDArray[np.int64] | None = None,
        *,
        index: object = None,
        cost_weight: object = None,
    ) -> dict[str, NDArray[Any]]:
        """Start episodes on random or given images, at random or given cost weights.

        Args:
            which: Indices of the episodes that start, in whole groups; ``None`` for all.
            index: Image of the split, or one for each of the ``n`` episodes; ``None`` draws.
            cost_weight: Cost weight, likewise.

        Returns:
            Entries of ``info``, batched: ``index`` and, with budget conditioning, ``cost_weight``.
        """
        streams = ALL if which is None else which
        if index is None:
            indices = self.sampler.draw(len(self.task.images), streams)
        else:
            indices = per_environment("index", index, self.n, np.int64)[streams]
            self.sampler.given[streams] += np.uint64(1)
        preferences, range_ = None, self.task.cost_weight_range
        if range_ is None and cost_weight is not None:
            raise ConfigError(
                f"options['cost_weight'] is {cost_weight!r}, but the environment has no "
                f"cost_weight_range and one cost weight, {self.task.reward.cost:g}."
            )
        if range_ is not None and cost_weight is None:
            preferences = self.sampler.preferences(streams)
        elif range_ is not None:
            weights = per_environment("cost_weight", cost_weight, self.n, np.float64)[streams]
            preferences = np.array([range_.preference(float(weight)) for weight in weights])
        self.reset(indices, preferences, which)
        if self.cost_weight is None:
            return {"index": indices}
        return {"index": indices, "cost_weight": self.cost_weight[streams]}

    @torch.inference_mode()
    def reset(
        self,
        indices: NDArray[np.int64],
        preferences: NDArray[np.float64] | None = None,
        which: NDArray[np.int64] | None = None,
    ) -> None:
        """Start episodes ``which``, ended or not, ``None`` for all, and run the stem.

        ``indices`` and ``preferences`` are those of the episodes that start.
        """
        task, backbone, images = self.task, self.task.backbone, self.task.images
        n_started = self.n if which is None else len(which)
        if indices.shape != (n_started,) or indices.min() < 0 or indices.max() >= len(images):
            raise ConfigError(
                f"image index {indices.tolist()} is not allowed; needed are {n_started} numbers "
                f"from 0 to {len(images) - 1}."
            )
        picked, rows = torch.from_numpy(indices).to(self._device), None
        if which is None:
            self.started = True
            self._states = []
            if task.passes.limit > 1:
                self._history = PassHistory(
                    task.passes, backbone, self.n, gate_macs=task.gate_macs, device=self._device
                )
            # New tensors: infos share the memory of old labels.
            self._labels = torch.zeros_like(picked)
            self._options = picked.new_zeros(self.n, backbone.costs.n_layers)
            self._spent: torch.Tensor = picked.new_zeros(self.n, dtype=torch.float64)
        else:
            rows = torch.from_numpy(which).to(self._device)
            self._drop(which)
            if self._history is not None:
                self._history.reset(rows)
        state = run_stem(backbone, images.images[picked])._replace(rows=rows)
        self._labels[state.places] = images.labels[picked]
        self._options[state.places], self._spent[state.places] = 0, 0.0
        streams = ALL if which is None else which
        self.indices[streams], self.ended[streams] = indices, False
        self.layers[streams], self.steps[streams] = 0, 0
        if preferences is not None:
            self._set_preferences(preferences, streams)
        first = observation_arrays(self._observe(state))
        self._add(state)
        if which is None:
            self.observation = first
            return
        # Copies keep observations that were returned before unchanged.
        self.observation = {key: value.copy() for key, value in self.observation.items()}
        for key, value in self.observation.items():
            value[which] = first[key]

    @torch.inference_mode()
    def advance(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.float64], EpisodeResult | None]:
        """Apply ``actions[i]`` to episode ``i``: run the next layer, or take the exit.

        At the end of a pass that is not the last, answer or start another one. Ended episodes stay
        unchanged, with a reward of 0. The results are those of the episodes that ended in this
        step, ``None`` if none did.
        """
        chosen = self._checked(actions)
        rewards = torch.zeros(self.n, dtype=torch.float64, device=self._device)
        self._actions[~self.ended, self.steps[~self.ended]] = to_numpy(chosen)[~self.ended]
        self.steps += ~self.ended
        states, self._states = self._states, []
        steps = [self._step(state, state.pick(chosen)) for state in states]
        observations, results = [], []
        for state in [each for running, _ in steps for each in running if len(each.spent)]:
            observations.append((state.rows, self._observe(state)))
            rewards[state.places] = self._arrive(state)
            self._add(state)
        for end in [each for _, finished in steps for each in finished if len(each.logits)]:
            observations.append((end.state.rows, self._observe(end.state, ended=True)))
            results.append(self._finish(end, rewards))
        self.observation = merge_observations(observations, self.n)
        return to_numpy(rewards), concatenate_results(results)

    def _step(
        self, state: ExecutionState, actions: torch.Tensor
    ) -> tuple[list[ExecutionState], list[Finished]]:
        """Run a state by a step; return the episodes that go on, and those that end."""
        task, backbone, history = self.task, self.task.backbone, self._history
        if history is not None and state.layer == backbone.costs.n_layers:
            images, indices = task.images.images, torch.from_numpy(self.indices).to(self._device)
            again = history.run_again(backbone, state, actions, lambda rows: images[indices[rows]])
            return [again], [history.answered(state, ~task.passes.runs_again(actions))]
        # With two bit options the space has an action that no layer has.
        actions = actions.masked_fill(actions >= backbone.costs.n_actions, 0)
        state, ends = advance(backbone, state, actions, reuse=True)
        running = [state] if state.layer < backbone.costs.n_layers else []
        if history is None:
            return running, ends
        finished = []
        for end in ends:
            waiting = history.end(end)
            last = history.finished[waiting.rows] == task.passes.limit
            running.append(gather_state(waiting, (~last).nonzero()[:, 0]))
            finished.append(history.answered(waiting, last))
        return running, finished

    @torch.inference_mode()
    def truncate(self, which: NDArray[np.int64]) -> None:
        """End running episodes ``which``, int64 ``[stopped]``, without an answer."""
        self._drop(which)
        self.ended[which] = True
        self.predictions[which] = -1

    def replay(
        self,
        indices: NDArray[np.int64],
        actions: Sequence[Sequence[int]],
        preferences: NDArray[np.float64] | None = None,
    ) -> None:
        """Start all episodes and replay the actions of each so far."""
        lengths = np.array([len(each) for each in actions])
        longest = int(lengths.max())
        # Shorter episodes start later, so that all arrive together.
        padded = np.array([[0] * (longest - len(each)) + list(each) for each in actions], np.int64)
        self.reset(indices, preferences)
        late = np.flatnonzero(lengths < longest)
        if len(late):
            self.truncate(late)
        for step in range(longest + 1):
            starting = late[lengths[late] == longest - step]
            if len(starting):
                own = None if preferences is None else preferences[starting]
                self.reset(indices[starting], own, starting)
            if step < longest:
                self.advance(padded[:, step])

    @torch.inference_mode()
    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of ``gating.action_masks``, ``[n, actions]``; all true once ended."""
        self.require_reset()
        task, costs = self.task, self.task.backbone.costs
        n_actions = task.passes.n_actions(costs)
        masks = torch.ones(self.n, n_actions, dtype=torch.bool, device=self._device)
        for state in self._states:
            spent, bounds = state.spent, {"gate_macs": task.gate_macs}
            if state.layer == costs.n_layers:
                masks[state.places] = end_masks(costs, task.passes, spent, task.budget, **bounds)
                continue
            masks[state.places] = False
            allowed = action_masks(costs, state.layer, spent, task.budget, **bounds)
            masks[state.places, : costs.n_actions] = allowed
        return to_numpy(masks)

    def render(self, i: int) -> NDArray[np.uint8]:
        """Draw the current state of episode ``i``, uint8 ``[360, 640, 3]``."""
        self.require_reset()
        task, index, layer = self.task, int(self.indices[i]), int(self.layers[i])
        costs = task.backbone.costs
        answer = None
        if self.ended[i] and self.predictions[i] >= 0:
            answer = task.class_names[self.predictions[i]], float(self.probabilities[i])
        return draw_episode(
            image=task.images.images[index].permute(1, 2, 0).cpu().numpy(),
            bits=[task.backbone.options[option] for option in self._options[i, :layer].tolist()],
            n_layers=costs.n_layers,
            computation=100.0 * (float(self._spent[i]) + costs.fixed_cost()),
            budget=task.budget,
            label=task.class_names[int(task.images.labels[index])],
            answer=answer,
        )

    def _add(self, state: ExecutionState) -> None:
        """Add a state to those that run, together with one at the same layer if there is one.

        Passes make their episodes differ in length, and few large states run fastest.
        """
        if self._history is not None:
            if state.rows is None:
                state = state._replace(rows=torch.arange(self.n, device=self._device))
            same = [each for each in self._states if each.layer == state.layer]
            self._states = [each for each in self._states if each.layer != state.layer]
            state = concatenate_states([*same, state])
        self._states.append(state)

    def _set_preferences(self, preferences: NDArray[np.float64], which: StreamIndices) -> None:
        """Set the preferences and cost weights of episodes."""
        range_ = self.task.cost_weight_range
        assert range_ is not None, "preferences are those of budget conditioning"
        if self.preferences is None:
            self.preferences = np.zeros(self.n)
        self.preferences[which] = preferences
        exact = torch.from_numpy(self.preferences).to(self._device)
        self._gate_preferences, self._cost_weight = exact.float(), range_.at(exact)
        self.cost_weight = to_numpy(self._cost_weight)

    def _drop(self, which: NDArray[np.int64]) -> None:
        """Remove episodes from the execution states, if they have not ended."""
        if self.ended[which].all():
            return
        kept = torch.ones(self.n, dtype=torch.bool, device=self._device)
        kept[torch.from_numpy(which).to(self._device)] = False
        members = [state.pick(kept).nonzero()[:, 0] for state in self._states]
        pairs = zip(self._states, members, strict=True)
        self._states = [gather_state(state, samples) for state, samples in pairs if len(samples)]

    def _arrive(self, state: ExecutionState) -> torch.Tensor:
        """Store options and costs of a state; return the rewards of the step to it, ``[rows]``."""
        cost, weights = state.spent - state.pick(self._spent), self._cost_weight
        weight = None if weights is None else state.pick(weights)
        if state.rows is None:
            self._options, self._spent = state.options, state.spent
            self.layers = np.full(self.n, state.layer, dtype=np.int64)
        else:
            self._options[state.rows], self._spent[state.rows] = state.options, state.spent
            passed = self.task.backbone.costs.n_layers_run(state.options).clamp(max=state.layer)
            self.layers[to_numpy(state.rows)] = to_numpy(passed)
        return -step_cost(self.task.reward, cost, cost_weight=weight)

    def _finish(self, finished: Finished, rewards: torch.Tensor) -> EpisodeResult:
        """Store the results of episodes and write their last rewards into ``rewards``."""
        (state, logits), costs = finished, self.task.backbone.costs
        labels, weights = state.pick(self._labels), self._cost_weight
        scores = score_predictions(logits, labels)
        rewards[state.places] = self._arrive(state) + terminal_reward(
            self.task.reward,
            scores,
            state.spent,
            gated_budget=self.task.gated_budget,
            cost_weight=None if weights is None else state.pick(weights),
        )
        episodes = np.arange(self.n) if state.rows is None else to_numpy(state.rows)
        self.ended[episodes] = True
        self.predictions[episodes] = to_numpy(scores.prediction)
        self.probabilities[episodes] = to_numpy(logits.softmax(dim=1).amax(dim=1))
        spent, history = state.spent, self._history
        info = {"index": self.indices[episodes], **final_info(costs, state.options, scores, labels)}
        if history is not None:
            info["n_passes"] = to_numpy(history.finished[state.rows])
            # Without the gate, as in a single pass.
            gate = costs.fixed_cost(gate_macs=self.task.gate_macs) - costs.fixed_cost()
            spent = spent - gate * (history.finished[state.rows] - 1)
        info["computation"] = 100.0 * (to_numpy(spent) + costs.fixed_cost())
        return EpisodeResult(episodes, info)

    def _observe(self, state: ExecutionState, *, ended: bool = False) -> Observation:
        task, preferences, history = self.task, self._gate_preferences, self._history
        at_end = history is not None and state.layer == task.backbone.costs.n_layers
        return observe(
            task.backbone,
            state,
            budget=task.budget,
            gate_macs=task.gate_macs,
            preferences=None if preferences is None else state.pick(preferences),
            evidence=None if history is None else state.pick(history.evidence),
            ended=ended or at_end,
        )

    def _checked(self, actions: NDArray[np.integer[Any]]) -> torch.Tensor:
        """Validate the actions and return them as int64 tensor."""
        n_actions = self.task.passes.n_actions(self.task.backbone.costs)
        fits = actions.shape == (self.n,) and actions.dtype.kind in "iu"
        if not fits or actions.min() < 0 or actions.max() >= n_actions:
            raise gymnasium.error.InvalidAction(
                f"action {actions.tolist()} is not allowed; needed are {self.n} whole numbers from "
                f"0 to {n_actions - 1}."
            )
        return torch.from_numpy(np.ascontiguousarray(actions, dtype=np.int64)).to(self._device)
