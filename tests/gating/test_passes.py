"""Gates with several passes: rollouts equal episodes of the environment, stored ones are equal."""

from dataclasses import replace

import pytest
import torch

from dfs_rl.backbones import ResNet
from dfs_rl.costs import BitOptions
from dfs_rl.data import ImageSet
from dfs_rl.envs.gating_env import FractionalSkippingEnv
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.evaluation.baselines.registry import MethodResult
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.summary import summarize
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import LSTMGate, MLPGate, OneShotGate, exit_info
from dfs_rl.gating.passes import AGAIN, PassSettings
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from dfs_rl.gating.shared_network import SharedMLPGate
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.latencies import made_up_profile
from tests.helpers.networks import network, pictures_for
from tests.helpers.toy_backbone import BITS, CHANNELS, ToyBackbone
from tests.helpers.toy_env import toy_image_set, toy_kwargs

SETTINGS = PassSettings(limit=3, mirrored=True, answer="mean")
OPTIONS = BitOptions(BITS)
MEASURED = BudgetConditioning(computations=(10.0, 20.0, 30.0))


def learned(after=(), *, kind=MLPGate, seed=0, **changes):
    exits = exit_info(ToyBackbone(exits=after))
    torch.manual_seed(seed)
    gate = kind(CHANNELS, OPTIONS, hidden=5, passes=SETTINGS, exits=exits, **changes)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    return gate


def rules(**changes):
    def each(*thresholds):
        passes = [RulePass(options=(1, 0, 2, 1)), RulePass(options=(3,) * 4, mirrored=True)]
        passes.append(RulePass(options=(2, 3, 2, 3)))
        kept = tuple(passes[: len(thresholds) + 1])
        return Rule(passes=kept, thresholds=thresholds)

    made = [each(), each(0.45), each(0.5, 0.9)]
    settings = {"budget_conditioning": MEASURED, "preference": 1.0} | changes
    return RuleGate(made, answer="mean", options=OPTIONS, **settings)


def play(gate, index, **task):
    """Run an episode under a gate; return its last info and what each pass chose."""
    env = FractionalSkippingEnv(**toy_kwargs(passes=gate.passes, **task))
    env.task = env._episodes.task = replace(env.task, gate_macs=gate.macs)
    seen, _ = env.reset(options={"index": index})
    gate.reset(1)
    done, info = False, {}
    while not done:
        context = torch.from_numpy(seen["context"][None])
        if gate.budget_conditioning is not None:  # the environment has no preference here
            preference = torch.full((1, 1), gate.preference)
            context = torch.cat([context[:, :3], preference, context[:, 3:]], dim=1)
        inputs = torch.from_numpy(seen["features"][None]), int(seen["layer"]), context
        if isinstance(gate, RuleGate):
            action = gate.decide(*inputs)
        else:
            action = gate.decide(*inputs, torch.from_numpy(env.action_masks()[None]))
        seen, _, done, _, info = env.step(int(action))
    return info


@pytest.mark.parametrize("budget", [None, 340.0])
@pytest.mark.parametrize("after", [(), (1, 3)], ids=["no exits", "exits"])
@pytest.mark.parametrize("kind", [MLPGate, RuleGate])
def test_rollouts_equal_episodes(kind, after, budget):
    if kind is RuleGate and budget is not None:
        pytest.skip("a rule knows no masks: its options are lowered instead")
    backbone, images, seen = (
        ToyBackbone(exits=after),
        toy_image_set().subset(torch.arange(8)),
        set(),
    )
    for seed in range(1 if kind is RuleGate else 5):
        gate = rules() if kind is RuleGate else learned(after, kind=kind, seed=seed)
        records = evaluate_gate(backbone, gate, images, batch_size=7, budget=budget)
        spent = records.computation(backbone.costs)
        logits, trace = GatedModel(backbone, gate, budget=budget)(images.images)
        torch.testing.assert_close(trace.computation, spent)
        assert torch.equal(logits.argmax(1), records.predictions)
        one_by_one = [GatedModel(backbone, gate, budget=budget)(i[None])[1] for i in images.images]
        assert torch.equal(torch.cat([t.n_passes for t in one_by_one]), trace.n_passes)
        torch.testing.assert_close(torch.cat([t.computation for t in one_by_one]), spent)
        plain = replace(records, gate_macs=0.0, gate_macs_taken=None, excess_macs=None)
        without = plain.computation(backbone.costs)
        for i in range(len(images)):
            info = play(gate, i, after=after, budget=budget)
            assert info["prediction"] == records.predictions[i]
            assert info["n_passes"] == trace.n_passes[i]
            assert info["bits"].tolist() == trace.bits[i].tolist()
            assert info["computation"] == pytest.approx(float(without[i]))
        if budget is not None:
            assert float(spent.max()) <= budget + 1e-9
        seen |= set(trace.n_passes.tolist())
    assert len(seen) > 1


def test_rules_by_preference():
    gate, images = rules(), toy_image_set()
    passes = []
    for preference in (0.0, 0.49, 0.5, 1.0):
        gate.preference = preference
        passes.append(GatedModel(ToyBackbone(), gate)(images.images)[1].n_passes)
    assert [int(p.max()) for p in passes] == [1, 1, 2, 3]
    each = torch.tensor([0.0, 0.5, 1.0]).repeat(20)[: len(images)]
    records = evaluate_gate(ToyBackbone(), gate, images, preferences=each)
    mixed = records.earlier.n_passes
    for start, whole in zip(range(3), [passes[0], *passes[2:]], strict=True):
        assert torch.equal(mixed[start::3], whole[start::3])


@pytest.mark.parametrize("make", [learned, rules])
def test_stored_gate_is_the_same(make, tmp_path):
    gate = make()
    save_gate(gate, tmp_path)
    again = load_gate(tmp_path)
    assert again.passes == gate.passes == SETTINGS
    images = toy_image_set().images
    results = [GatedModel(ToyBackbone(), each)(images) for each in (gate, again)]
    assert torch.equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_gate_macs_count_in_every_pass():
    gate, costs = learned(), ToyBackbone().costs
    one = MLPGate(CHANNELS, OPTIONS, hidden=5)
    evidence = SETTINGS.evidence_size
    end = (3 + evidence) * 5 + 5 * 4
    assert gate.macs == one.macs + 4 * evidence * 5 + end
    records = evaluate_gate(ToyBackbone(), gate, toy_image_set())
    assert torch.equal(records.gate_macs_taken, gate.macs * records.earlier.n_passes)
    without = replace(records, gate_macs=0.0, gate_macs_taken=None, excess_macs=None)
    extra = records.computation(costs) - without.computation(costs)
    torch.testing.assert_close(extra, 100.0 * records.gate_macs_taken / costs.total_macs)


@pytest.mark.parametrize("after", [(), (1, 3)], ids=["no exits", "exits"])
def test_measured_times_of_all_passes(after):
    backbone, gate, image_set = ToyBackbone(exits=after), learned(after, seed=2), toy_image_set()
    profile = made_up_profile(backbone.costs, gate_macs=gate.macs)
    costs = backbone.costs = backbone.costs.with_cost_model("latency", profile)
    _, trace = GatedModel(backbone, gate)(image_set.images)
    assert trace.n_passes.max() > 1
    expected = []
    for passes, n in zip(trace.pass_options.tolist(), trace.n_passes.tolist(), strict=True):
        assert all(options == [-1] * 4 for options in passes[n:])
        layers = [[o for o in options if o != costs.exit_action] for options in passes[:n]]
        times = [
            [0.5, 0.25 if len(ran) == len(BITS) else 0.125, 0.0625 * min(len(ran) + 1, 4)]
            + [0.1 * layer * (1 + BITS[o]) for layer, o in enumerate(ran, start=1)]
            for ran in layers
        ]
        expected.append(sum(map(sum, times)))
    measured = trace.computation * costs.total_cost / 100.0
    torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64))
    records = evaluate_gate(backbone, gate, image_set)
    torch.testing.assert_close(records.computation(costs), trace.computation)
    torch.testing.assert_close(records.milliseconds(costs), measured)


@pytest.mark.parametrize("after", [(), (1,)], ids=["no exits", "exits"])
def test_measured_times_depend_on_no_other_cost(after):
    times = []
    for cost in ("computation", "macs"):  # which counts features at 8 bit as much as at 32
        net, images = network(ResNet), pictures_for(ResNet)
        net.set_exits(after)
        net.set_cost_model(cost)
        gate = MLPGate(
            net.feature_sizes,
            net.options,
            feature_macs=net.feature_macs,
            exits=exit_info(net),
            passes=PassSettings(limit=2),
        )
        for parameter in gate.parameters():  # the spent cost must not change decisions
            torch.nn.init.zeros_(parameter)
        gate.networks[-1][2].bias.data[AGAIN] = 1.0
        records = evaluate_gate(net, gate, ImageSet(images, torch.zeros(len(images)).long()))
        assert (records.earlier.n_passes == 2).all()
        measured = net.costs.with_cost_model("latency", made_up_profile(net.costs))
        times.append(records.milliseconds(measured))
    torch.testing.assert_close(*times)


@pytest.mark.parametrize(("ratio", "estimated"), [(1, False), (3, True)])
def test_the_time_of_a_measured_gate_is_no_estimate(ratio, estimated):
    gate, costs = learned(seed=2), ToyBackbone().costs
    profile = made_up_profile(costs, gate_macs=ratio * gate.macs)
    records = evaluate_gate(ToyBackbone(), gate, toy_image_set())
    assert records.earlier.n_passes.max() == 3
    summary = summarize(
        [MethodResult(key="gate", label="", role="gate", records=(records,), selection=records)],
        costs,
        measured=costs.with_cost_model("latency", profile),
        identity="",
        dataset="",
        fingerprint="",
        split="test",
        class_names=("a", "b", "c"),
    )
    assert ("estimate" in " ".join(summary.verdict)) == estimated


def test_errors():
    with pytest.raises(ConfigError, match="limit is 0"):
        PassSettings(limit=0)
    with pytest.raises(ConfigError, match="OneShotGate, which decides for a single pass"):
        learned(kind=OneShotGate)
    with pytest.raises(ConfigError, match="LSTMGate, which decides for a single pass"):
        learned(kind=LSTMGate)
    with pytest.raises(ConfigError, match="several passes may choose every option"):
        learned(choices=(0, 1))
    with pytest.raises(ConfigError, match="2 passes and 0 thresholds"):
        Rule(passes=(RulePass(options=(1,)),) * 2)
    with pytest.raises(ConfigError, match="first pass of a rule is mirrored"):
        Rule(passes=(RulePass(options=(1,), mirrored=True),))
    with pytest.raises(ConfigError, match="3 rules without measured costs"):
        rules(budget_conditioning=None)
    with pytest.raises(ConfigError, match=r"pass of the rules is \[4\]"):
        RuleGate([Rule(passes=(RulePass(options=(4,)),))], answer="last", options=OPTIONS)
    one = RuleGate([Rule(passes=(RulePass(options=(1,)),))], answer="last", options=OPTIONS)
    model = GatedModel(ToyBackbone(), learned(kind=SharedMLPGate, widths=(5,)))
    with pytest.raises(ConfigError, match="budget is 9 and passes is 3"):
        model.budget = 9.0
    with pytest.raises(CheckpointError, match=r"is the table \[1\]"):
        GatedModel(ToyBackbone(), one)
