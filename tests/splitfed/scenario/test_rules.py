"""Rules between keys and sections: each with its key and line, all at once, in whatever order the fields are."""

import random
from typing import Any

import pytest
from pydantic import ValidationError, create_model

from splitfed.config import Config
from splitfed.errors import ScenarioError
from splitfed.scenario import Scenario
from splitfed.scenario.document import read
from splitfed.scenario.presets import written_out
from splitfed.scenario.problems import valid_part
from splitfed.scenario.rules.registry import RULES, breaks
from splitfed.scenario.sections import Federation

SMALL = """\
model: {name: m, cut: 1, image_size: 8}
data: {path: digits}
federation:
  clients: 10
  rounds: 3
"""
CONTROL = """\
control:
  kind: drift_plus_penalty
  target: {kind: all_bytes, bytes: 1MB}
"""


def exits(keys: str, why: str = "", key: str = "blocks") -> str:
    """Return a scenario with exits of which one key is wrong, or none."""
    problem = f"  # model.exits.{key}: {why}" if why else ""
    return SMALL.replace("image_size: 8}", f"image_size: 8, exits: {{{keys}}}}}{problem}")


def adapter(settings: str, why: str) -> str:
    return SMALL.replace("8}", f"8, adapter: {settings}}}  # model.{why}")


PARTS = adapter("{kind: hydra, parts: 2}", "adapter.parts: is 2: parts cross in turn")
# What follows, for each rule. A comment is the beginning of the problem that its line has.
BREAKS = {
    "cohort_is_of_the_clients": [
        "  cohort: 20  # federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
    ],
    "order_is_of_a_shared_back": [
        "  mode: sfl-v1\n"
        "  order: arrival  # federation.order: with sfl-v1 clients train at once and in no order: leave it out, or set",
        "  order: arrival  # federation.order: with psl clients train in joint steps: leave it out\n"
        "  mode: psl",
        "  order: arrival  # federation.order: with sl clients train one after another, or there is no front to hand\n"
        "  mode: sl",
    ],
    "wave_is_of_those_at_once": [
        "  wave: 2  # federation.wave: with sfl-v2 clients train one after another: leave it out, or set order",
        "  wave: 2  # federation.wave: with sl clients train one after another: leave it out\n"
        "  mode: sl",
        "  wave: 5  # federation.wave: 5 at once of 4 clients a round: lower it, or leave it out for all\n"
        "  cohort: 4\n"
        "  order: arrival",
    ],
    "patience_is_of_joint_steps": [
        "  patience: 5.0  # federation.patience: with sfl-v2 no client waits for another: leave it out, or set mode",
    ],
    "private_labels_need_whole_mini_batches": [
        "  labels: private  # federation.labels: with fl no labels leave a client anyway: leave it out, or set\n"
        "  mode: fl",
        "  mode: psl\n"
        "  labels: private  # federation.labels: with psl the back takes a step for all clients at once, and each",
        "  labels: private  # federation.labels: with order: arrival another client's update would come between\n"
        "  order: arrival",
    ],
    "ahead_is_of_gradients_on_their_way": [
        "  mode: fl\n"
        "training: {ahead: 1}  # training.ahead: with fl no gradient comes from the server: leave it out, or set",
        "  mode: psl\n"
        "training: {ahead: 1}  # training.ahead: with psl a step is of one mini-batch of each client, and none goes on",
        "  labels: private\n"
        "training: {ahead: 1}  # training.ahead: with federation.labels: private a mini-batch goes up twice",
        "training: {ahead: 1}  # training.ahead: with compression.smashed.delta both ends go on from what has crossed\n"
        "compression: {smashed: {delta: true}}",
        "training: {ahead: 1}  # training.ahead: with compression.smashed.skip both ends go on from what has crossed\n"
        "compression: {smashed: {skip: 0.9}}",
        "training: {ahead: 1}  # training.ahead: with compression.cut_gradient.delta both ends go on from what has\n"
        "compression: {cut_gradient: {delta: true}}",
        "training: {ahead: 1}  # training.ahead: in none of the phases does the front wait for a gradient: leave\n"
        "phases: [{kind: local, rounds: 1}, frozen]",
    ],
    "checkpointing_is_of_weights_that_stay": [
        "training: {ahead: 1, client: {checkpointing: true}}  # training.client.checkpointing: with training.ahead a",
    ],
    "steps_or_epochs": [
        "  local_steps: 3  # federation.local_steps: local_epochs is set too: keep one of them and set the other\n"
        "  local_epochs: 1",
    ],
    "strategy_has_something_to_aggregate": [
        "  strategy: FedTrimmedAvg  # federation.strategy: FedTrimmedAvg: beta 0.2 of 4 clients is less than one\n"
        "  cohort: 4",
        "  strategy: FedMedian  # federation.strategy: FedMedian: with sl nothing is aggregated: leave it out, or set\n"
        "  mode: sl",
    ],
    "clip_is_of_what_crosses": [
        "  clip: {smashed: 1.0}  # federation.clip.smashed: with fl no activations leave a client: leave it out\n"
        "  mode: fl",
        "  clip: {tail_gradient: 1.0}  # federation.clip.tail_gradient: only with labels: private does a gradient come",
    ],
    "availability_is_of_a_simulation": [
        "  availability: {kind: drawn, late: 1.0}  # federation.availability: a deployment's clients have their own\n"
        "engine: deployment",
    ],
    "link_is_of_a_simulation": [
        "link: {kind: fixed, up: 5Mbit, down: 9Mbit}  # link: a deployment's clients have their own: set it to ideal\n"
        "engine: deployment",
        "  server: {link: {up: 1Gbit}}  # federation.server.link: with an ideal link all bytes cross at once: leave",
    ],
    "devices_are_of_a_simulation": [
        "  profiles: {phone: {share: 1.0, link: lte}}  # federation.profiles.phone.link: a deployment's clients have \n"
        "engine: deployment",
        "  profiles: {phone: {share: 1.0, device: {flops: 5GFLOPS}}}  # federation.profiles.phone.device.flops: a dep\n"
        "engine: deployment",
        "  server: {device: {flops: 5GFLOPS}}  # federation.server.device: a deployment's server is as fast as it is\n"
        "engine: deployment",
    ],
    "profiles_are_all_clients": [
        "  profiles: {phone: {share: 0.5}, hospital: {share: 0.4}}  # federation.profiles: the shares are 0.9 together",
        "  profiles: {phone: {share: 0.99}, hospital: {share: 0.01}}  # federation.profiles.hospital.share: 0.01 of 10",
    ],
    "computing_is_told_once": [
        "  availability: {kind: drawn, step_seconds: 1.0}\n"
        "  profiles: {phone: {share: 1.0, device: {flops: 5GFLOPS}}}  # federation.profiles.phone.device.flops: fede",
    ],
    "oversample_takes_more_than_the_cohort": [
        "  oversample: 1.5  # federation.oversample: all 10 clients are sampled already: set a smaller cohort",
        "  oversample: 1.5  # federation.oversample: nothing tells the time of a simulation: set federation.availab\n"
        "  cohort: 4",
    ],
    "deadline_is_on_a_clock": [
        "  deadline: 9.0  # federation.deadline: nothing tells the time of a simulation: set federation.availability",
    ],
    "phases_fill_the_rounds": [
        "phases: [{kind: gradient}, frozen]  # phases: phase 1 says no rounds, but the last phase alone takes those",
        "phases: [{kind: gradient, rounds: 3}, frozen]  # phases: those before the last one take 3 rounds, and federat",
        "phases: [{kind: gradient, rounds: 1}, {kind: frozen, rounds: 1}]  # phases: the last one is of 1 rounds,",
    ],
    "phases_are_of_a_front": [
        "  mode: fl\n"
        "phases: [frozen]  # phases: with fl there is no front apart from the rest: leave it out, or set another",
        "  labels: private\n"
        "phases: [frozen]  # phases: with federation.labels: private the tail learns beside the front and crosses",
        "  mode: fl\n"
        "phases: [local]  # phases: with fl there is no front apart from the rest: leave it out, or set another",
        "  labels: private\n"
        "phases: [local]  # phases: with federation.labels: private the tail learns beside the front and crosses",
    ],
    "phases_teach_the_back": [
        "phases: [{kind: local, upload_every: null}]  # phases: with upload_every: null throughout nothing goes",
    ],
    "memory_is_of_a_frozen_front": [
        "memory: {disk: 1GB}  # memory: is of a front that stays as it is to the end: let the last of phases be froz",
        "phases: [{kind: frozen, rounds: 1}, gradient]\n"
        "memory: {disk: 1GB}  # memory: is of a front that stays as it is to the end: let the last of phases be froz",
    ],
    "memory_is_of_fixed_images": [
        "model: {name: m, cut: 1, image_size: 8}\n"
        "data: {path: digits, augment: flip}\n"
        "federation: {clients: 10, rounds: 3}\n"
        "phases: [frozen]\n"
        "memory: {disk: 1GB}  # memory: with data.augment: flip images never look the same twice: set data.variants",
        "phases: [frozen]\n"
        "memory: {disk: 1GB, variants: 2}  # memory.variants: is 2, and data.variants gives an image 1: lower it",
    ],
    "memory_alters_what_is_alike": [
        "phases: [frozen]\ncompression: {reducer: semantic_tokens}\n"
        "memory: {disk: 1GB, mix: 0.2}  # memory.mix: the reducer semantic_tokens sends samples of different numbers",
    ],
    "nets_are_fitted_to_what_goes_up": [
        "phases: [{kind: local, rounds: 1, upload_every: null, align_every: 2}, frozen]  # phases: phase 1 has align",
    ],
    "copies_are_of_samples_that_come_again": [
        "phases: [frozen]\n"
        "memory: {disk: 1GB}\n"
        "compression:\n"
        "  smashed:\n"
        "    delta: true  # compression.smashed.delta: into memory each sample crosses once, and of none comes a diff",
        "phases: [{kind: local, rounds: 1, upload_every: null}, frozen]\n"
        "memory: {disk: 1GB}\n"
        "compression:\n"
        "  smashed:\n"
        "    skip: 0.9  # compression.smashed.skip: into memory each sample crosses once, and of none comes a differen",
        "phases: [{kind: local, rounds: 1}, frozen]\n"
        "compression:\n"
        "  cut_gradient:\n"
        "    delta: true  # compression.cut_gradient.delta: no gradient comes down in any phase: leave it out, or let",
    ],
    "memory_is_gone_over": [
        "  cohort: 4\n"
        "phases: [frozen]\n"
        "memory: {disk: 1GB}  # memory: all clients send their images in 3 rounds of the last phase, then come 1",
    ],
    "exits_are_where_labels_are": [
        exits("blocks: [1, 2]", "with federation.labels: private the server has no labels that a head after block 2")
        + "  labels: private",
    ],
    "cascades_are_of_one_side": [
        exits("blocks: [1, 2], heads: cascade", "in a cascade each head sees what the one before says", "heads"),
    ],
    "exits_see_whole_tokens": [
        exits("blocks: [1, 2]", "with the reducer semantic_tokens gates run the front as a whole")
        + "compression: {reducer: semantic_tokens}",
    ],
    "exits_learn_in_some_round": [
        exits("blocks: [1], regime: mixed, after: 3", "is 3 of 3 rounds, so the exits never learn: lower it", "after"),
        exits("blocks: [1], regime: mixed, after: 1", "the front is frozen whenever its exits would learn: name blocks")
        + "phases: [{kind: gradient, rounds: 1}, frozen]",
        exits("blocks: [2], regime: mixed, after: 1", "nothing goes up that the exits of the back could learn from")
        + "phases: [{kind: gradient, rounds: 1}, {kind: local, upload_every: null}]",
    ],
    "disjoint_exits_change_nothing_else": [
        exits("blocks: [1], regime: disjoint")
        + "  clip: {front_weights: 1.0}  # federation.clip.front_weights: with disjoint exits an update's norm",
        exits("blocks: [1], regime: disjoint")
        + "  strategy: {kind: Krum, num_malicious_nodes: 1}  # federation.strategy: Krum measures clients by heads and",
    ],
    "parts_take_turns_where_they_cross": [
        adapter("{kind: hydra, parts: 2, on: both}", "adapter.parts: is 2, and of what follows the front nothing"),
        adapter("{kind: hydra, parts: 4}", "adapter.parts: is 4 of 3 rounds, so some never learn"),
    ],
    "parts_are_sent_whole": [PARTS + "compression: {front_weights: {delta: true}}", PARTS + "phases: [frozen]"],
    "parts_are_made_of_one_round": [
        PARTS.partition("  #")[0] + SMALL.partition("8}")[2] + "  strategy: FedAdam  # federation.strategy: FedAdam",
    ],
    "tail_is_of_private_labels": [
        "model: {name: m, cut: 1, tail: 2, image_size: 8}\n"
        "data: {path: digits}\n"
        "federation:  # federation: model.tail is 2, but only with labels: private does a client hold a tail: leave\n"
        "  clients: 10\n"
        "  rounds: 3",
    ],
    "server_trains_what_it_holds": [
        "  mode: fl\n"
        "training:\n"
        "  server:\n"
        "    device: cpu\n"
        "    clip: 1.0  # training.server.clip: with fl clients train the whole model, as training.client says: leave",
        "  mode: fl\n"
        "training:\n"
        "  server:  # training.server: with fl clients train the whole model, as training.client says: leave out wei\n"
        "    clip: 1.0\n"
        "    weight_decay: 0.5",
    ],
    "reducer_takes_the_batches": [
        "compression:\n"
        "  reducer: {kind: c3sl, r: 4}  # compression.reducer: c3sl: r: 4 does not divide training.batch_size: 30\n"
        "training: {batch_size: 30}",
    ],
    "loaded_weights_are_in_a_file": [
        "compression:\n"
        "  front_weights:\n"
        "    initial: load  # compression.front_weights.initial: the model's weights are drawn, so there are none to",
    ],
    "copies_are_of_single_samples": [
        "compression:\n"
        "  reducer: jscc\n"
        "  smashed: {delta: true}  # compression.smashed.delta: with the reducer jscc noise makes a sample another at",
        "compression:\n"
        "  reducer: {kind: adc, ratio: 0.5}\n"
        "  smashed: {delta: true}  # compression.smashed.delta: the reducer adc makes samples of several images, of",
        "compression:\n"
        "  reducer: {kind: merge_samples, kept_samples: 0.5}\n"
        "  smashed: {skip: 0.9}  # compression.smashed.skip: the reducer merge_samples makes samples of several images",
        "compression:\n"
        "  reducer: {kind: c3sl, r: 2}\n"
        "  cut_gradient: {delta: {kind: float8}}  # compression.cut_gradient.delta: the reducer c3sl makes samples of",
        "model: {name: m, cut: 1, image_size: 8}\n"
        "data: {path: digits, augment: flip}\n"
        "federation: {clients: 10, rounds: 3}\n"
        "compression:\n"
        "  smashed: {delta: true}  # compression.smashed.delta: with augment: flip an image is another at each visit:",
        "compression:\n"
        "  cache: {disk: 1GB}  # compression.cache: nothing is kept without delta or skip: leave it out, or set",
    ],
    "symbols_cross_as_they_are": [
        "compression:\n"
        "  reducer: jscc\n"
        "  smashed:\n"
        "    codec: {kind: uniform, bits: 8}  # compression.smashed.codec: uniform: the reducer jscc sends what a ch",
    ],
    "what_is_packed_crosses": [
        "  mode: fl\n"
        "compression:\n"
        "  smashed: {delta: true}  # compression.smashed: with fl nothing crosses a cut, weights are packed by",
        "compression:\n"
        "  tail_smashed: {codec: float16}  # compression.tail_smashed: only with federation.labels: private is there",
        "  labels: private\n"
        "compression:\n"
        "  targets: {codec: float16}  # compression.targets.codec: with federation.labels: private no targets cross",
        "  mode: fl\n"
        "compression:\n"
        "  reducer: {kind: discard_tokens, kept_tokens: 0.5}  # compression.reducer: with fl nothing crosses a cut, w",
        "  mode: fl\n"
        "preset: medium  # compression: with fl nothing crosses a cut, weights are packed by front_weights: leave out ",
        "  mode: fl\n"
        "compression:  # compression: with fl nothing crosses a cut, weights are packed by front_weights: leave out\n"
        "  smashed: {codec: float16}\n"
        "  parts: {codec: float16}",
    ],
    "evaluation_asks_of_the_clients": [
        "evaluation: {held_out: 0.1, cohort: 11}  # evaluation.cohort: 11 of 10 clients cannot be asked: lower it, or",
    ],
    "budget_can_be_spent": [
        "  mode: fl\n"
        "budget:\n"
        "  kind: cut_bytes  # budget.kind: with fl nothing crosses a cut to spend it: set it to none, rounds end the\n"
        "  bytes: 1MB",
    ],
    "engine_waits_longer_than_a_joint_step": [
        "  mode: psl\n"
        "engine:\n"
        "  kind: ray\n"
        "  deadline: 60.0  # engine.deadline: after 60 s a joint step of psl may still wait for a client: raise it",
    ],
    "what_ends_keep_is_alike": [
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression: {smashed: {codec: float16}}  # federation.profiles.phone.compression: with smashed.skip b\n"
        "compression: {smashed: {skip: 0.99}}",
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression:\n"
        "        front_weights: {delta: true}  # federation.profiles.phone.compression.front_weights.delta: is of the ",
        CONTROL.replace("control:", "control:  # control: with smashed.delta both ends keep samples as they crossed") +
        "  points: {fine: {}, coarse: {}}\n"
        "compression: {smashed: {delta: true}}\n",
    ],
    "weights_that_are_kept_are_alike": [
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression: {parts: {codec: float16}}  # federation.profiles.phone.compression.parts: with compressio\n"
        "compression: {front_weights: {delta: true}}",
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression:\n"
        "        front_weights: {codec: float16}  # federation.profiles.phone.compression.front_weights: with a froze\n"
        "phases: [{kind: gradient, rounds: 1}, frozen]",
    ],
    "memory_is_of_one_reducer": [
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression: {reducer: {kind: discard_tokens, kept_tokens: 0.5}}  # federation.profiles.phone.compress\n"
        "phases: [frozen]\n"
        "memory: {}",
    ],
    "points_are_of_what_crosses": [
        "  mode: fl\n" + CONTROL.replace("control:", "control:  # control: with fl nothing crosses a cut: leave it o") +
        "  points: {fine: {}, coarse: {}}",
        CONTROL.replace("control:", "control:  # control: what memory takes crosses once, whatever comes after it") +
        "  points: {fine: {}, coarse: {}}\n"
        "phases: [frozen]\n"
        "memory: {}",
        CONTROL +
        "  points:\n"
        "    fine: {utility: 1.0}\n"
        "    coarse: {}  # control.points.coarse: utility is missing, which other points have: give it to all or to no",
        "  labels: private\n" + CONTROL +
        "  points: {fine: {}, coarse: {gradient_every: 2}}  # control.points.coarse.gradient_every: with federation.la",
        CONTROL +
        "  points: {fine: {}, coarse: {gradient_every: null}}  # control.points.coarse.gradient_every: in no phase do\n"
        "phases: [frozen]",
    ],
    "targets_are_on_a_clock": [
        "control:\n"
        "  kind: drift_plus_penalty\n"
        "  target: {kind: seconds_per_round, seconds: 20s}  # control.target: seconds_per_round: nothing tells the ti\n"
        "  points: {fine: {}, coarse: {}}",
        "control:\n"
        "  kind: drift_plus_penalty\n"
        "  target: {kind: all_bytes, bytes: 1MB, seconds: 1h}  # control.target: all_bytes: nothing tells the time of\n"
        "  points: {fine: {}, coarse: {}}",
    ],
}  # fmt: skip
CASES = [pytest.param(rule, more, id=f"{rule}-{i}") for rule, texts in BREAKS.items() for i, more in enumerate(texts)]
FINE = (
    "  cohort: 4\n  mode: psl\n  wave: 2\n  patience: 5.0\n  oversample: 1.5\n  deadline: 9.0\n"
    "  availability: {kind: drawn, late: 1.0}\nengine: ray\nevaluation: {held_out: 0.1, cohort: 10}"
)


def text(more: str) -> str:
    return more if more.startswith("model:") else SMALL + more


def problems(written: str, model: type[Scenario] = Scenario) -> list[str]:
    try:
        model.parse(written, "f.yaml")
    except ScenarioError as error:
        return error.problems
    return []


def marked(written: str) -> list[str]:
    """Return the beginnings of the problems that a text has, by its comments."""
    lines = [line.partition("  # ")[2] for line in written.splitlines()]
    return [f"f.yaml:{number}: {problem}" for number, problem in enumerate(lines, 1) if problem]


@pytest.mark.parametrize(("rule", "more"), CASES)
def test_each_rule_tells_its_key_and_line(rule: str, more: str) -> None:
    found, wanted = problems(text(more)), marked(text(more))
    assert len(found) == len(wanted) > 0
    for problem, beginning in zip(found, wanted, strict=True):
        assert problem.startswith(beginning)
    part = valid_part(Scenario, written_out(read(text(more), "f.yaml").data))
    assert {one.__name__ for one in RULES if list(breaks(one, part))} == {rule}


def test_every_rule_is_broken_here() -> None:
    assert list(BREAKS) == [rule.__name__ for rule in RULES]


def reordered(model: type[Config], order: list[str], **other: Any) -> type[Any]:
    """Return the model with its fields in another order, and others in the place of some."""
    first = create_model("First", __base__=Config, **dict.fromkeys(order, (Any, None)))
    made = create_model(model.__name__, __base__=(model, first), **{name: (kind, ...) for name, kind in other.items()})
    assert list(made.model_fields) == order
    return made


def orders(model: type[Config], seed: int | None) -> list[str]:
    names = list(model.model_fields)
    return names[::-1] if seed is None else random.Random(seed).sample(names, len(names))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_order_of_fields_changes_no_verdict(seed: int | None) -> None:
    federation = reordered(Federation, orders(Federation, seed))
    scenario = reordered(Scenario, orders(Scenario, seed), federation=federation)
    assert problems(SMALL + FINE, scenario) == []
    for texts in BREAKS.values():
        for more in texts:
            assert problems(text(more), scenario) == problems(text(more))


def test_rules_of_several_sections_are_told_at_once() -> None:
    assert problems(
        SMALL + "  cohort: 20\n  patience: 5.0\nevaluation:\n  cohort: 11\n"
        "compression: {tail_gradient: {lossless: none}}"
    ) == [
        "f.yaml:6: federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
        "f.yaml:7: federation.patience: with sfl-v2 no client waits for another: leave it out, or set mode: psl",
        "f.yaml:9: evaluation.cohort: 11 of 10 clients cannot be asked: lower it, or leave it out",
        "f.yaml:10: compression.tail_gradient: only with federation.labels: private is there a second cut: leave it "
        "out, or set that",
    ]


def test_what_is_not_valid_hides_no_rule_that_does_not_read_it() -> None:
    """The mode is unknown, so nothing is told that depends on it."""
    assert problems(
        SMALL.replace("3", "none") + "  mode: sfl\n  order: arrival\n  cohort: 20\n  patience: 5.0\n"
        "training: {batch_size: 30, evaluate_every: 0}\n"
        "compression: {reducer: {kind: c3sl, r: 4}, smashed: {codec: {kind: uniform, bits: 5}}}\n"
    ) == [
        "f.yaml:5: federation.rounds: must be a whole number, not 'none'",
        "f.yaml:6: federation.mode: must be 'sl', 'sfl-v1', 'sfl-v2', 'psl' or 'fl', not 'sfl', "
        "did you mean 'sfl-v1' or 'sfl-v2'?",
        "f.yaml:8: federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
        "f.yaml:10: training.evaluate_every: must be greater than 0, not 0",
        "f.yaml:11: compression.smashed.codec.bits: must be 2, 3, 4, 6 or 8, not 5",
        "f.yaml:11: compression.reducer: c3sl: r: 4 does not divide training.batch_size: 30; r could be 3 or 5",
    ]  # fmt: skip


def test_two_rules_at_one_key_make_one_line() -> None:
    (problem,) = problems(
        SMALL + "  mode: fl\ncompression: {reducer: {kind: c3sl, r: 4}}\ntraining: {batch_size: 30}\n"
    )
    assert problem.startswith("f.yaml:7: compression.reducer: c3sl: r: 4 does not divide training.batch_size: 30")
    assert "; with fl nothing crosses a cut" in problem


def test_a_scenario_made_of_values_keeps_the_rules() -> None:
    data = read(SMALL + "  cohort: 20\nevaluation: {cohort: 11}", "f.yaml").data
    with pytest.raises(ValidationError) as caught:
        Scenario.model_validate(data)
    (error,) = caught.value.errors()
    assert "federation.cohort: 20 of 10 clients" in error["msg"]
    assert "evaluation.cohort: 11 of 10 clients" in error["msg"]
    made = Scenario.model_validate(read(SMALL + FINE, "f.yaml").data)
    with pytest.raises(ValidationError, match=r"engine\.deadline: after 5 s a joint step"):
        Scenario(**{**dict(made), "engine": made.engine.model_copy(update={"deadline": 5.0})})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("data: {path: digits, partition: {kind: shard, num_shards_per_partition: null}}",
         "f.yaml:2: data.partition.shard_size: num_shards_per_partition is null too: set one of them"),
        ("compression:\n  smashed:\n    codec:\n      kind: fedlite\n      subvectors: 16\n      groups: 3",
         "f.yaml:11: compression.smashed.codec.groups: 16 subvectors make no 3 groups of equal size: choose a divisor"),
    ],
)  # fmt: skip
def test_rules_within_a_section_are_told_at_a_key(more: str, problem: str) -> None:
    small = SMALL.replace("data: {path: digits}", more) if more.startswith("data") else SMALL + more
    assert problems(small) == [problem]
