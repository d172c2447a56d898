"""What an estimate foretells, against what short runs come to."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ADC, PLAIN, small, table
from safetensors.torch import load_file

from splitfed import estimate, simulate
from splitfed.reports.costs.text import text
from splitfed.reports.units import size
from splitfed.scenario.sections import Terms

DEPTH = "model.args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}"
# Nothing depends on the images without a lossless stage.
BARE = [DEPTH, *PLAIN]
PRIVATE = [DEPTH, "federation.labels=private"]
BARE_PRIVATE = [*BARE, *PRIVATE, *(f"compression.{role}.lossless=none" for role in ("tail_smashed", "tail_gradient"))]
FL = ["federation.mode=fl", "training.server={}"]
BARE_FL = [*FL, "compression.front_weights.lossless=none"]
TOKENS = "compression.reducer={kind: discard_tokens, kept_tokens: 0.6}"
BOTTLENECK = ["compression.reducer={kind: bottleneck, width: 8}", "compression.parts.lossless=none"]
OUT = "evaluation.held_out=0.25"
BITS = [f"compression.{role}.codec={{kind: uniform, bits: 3}}" for role in ("smashed", "cut_gradient", "front_weights")]
TAIL_BITS = [f"compression.{role}.codec={{kind: uniform, bits: 3}}" for role in ("tail_smashed", "tail_gradient")]
UNTOLD = (("control", "envelope"), ("control", "metrics"))  # what Flower adds


@pytest.mark.parametrize(
    "overrides",
    [
        BARE, [*BARE, "federation.mode=sl"],
        [*BARE, "federation.local_epochs=null", "federation.local_steps=5", "data.limit=99"],
        [*BARE, "federation.mode=psl", TOKENS], [*BARE, *BOTTLENECK, *BITS], [*BARE, "model.adapter=norms"],
        [*BARE, OUT, "training.batch_size=5"], [*BARE, OUT, *BOTTLENECK, "evaluation.cohort=3"],
        BARE_PRIVATE, [*BARE_PRIVATE, TOKENS], [*BARE_PRIVATE, *BOTTLENECK, *TAIL_BITS],
        [*BARE_PRIVATE, OUT, "training.batch_size=5"], BARE_FL, [*BARE_FL, OUT],
        [*BARE, "phases=[{kind: local, upload_every: 2}]", "training.batch_size=5", BITS[0]],
        [*BARE, "phases=[{kind: local, upload_every: 2, align_every: 2}]", "training.batch_size=5", *BITS],
        [*BARE_PRIVATE, "model.adapter={kind: bottleneck, on: both}"], [*BARE, "model.adapter=head", "phases=[frozen]"],
    ],
    ids=[
        "shared", "sl", "steps", "psl", "bottleneck", "norms", "evaluation", "evaluation-bottleneck", "private",
        "private-tokens", "private-bottleneck", "private-evaluation", "fl", "fl-evaluation",
        "local", "local-aligned", "private-adapted", "head",
    ],
)  # fmt: skip
def test_every_role_of_a_run_is_foretold(overrides: list[str], tmp_path) -> None:
    scenario = small("federation.rounds=1", *overrides)
    guess, real = estimate(scenario), simulate(scenario, runs=tmp_path).totals
    once = guess.round + guess.once
    foretold = {place: sizes for place, sizes in once.sums.items() if sizes.sent}
    told = {place: sizes for place, sizes in real.sums.items() if (place[0], place[2]) not in UNTOLD}
    assert foretold.keys() == told.keys()
    for place, sizes in told.items():
        if place[2] == "envelope":
            # What a client counts is written in 1 to 5 bytes each way, and taken to be in 5.
            assert 0 <= foretold[place].sent - sizes.sent <= 2 * 3 * 2 * 4, place
        else:
            assert foretold[place] == sizes, place


@pytest.mark.parametrize("every", [1, 2])
def test_evaluations_are_counted_as_often_as_they_are_due(every: int, tmp_path) -> None:
    scenario = small(*BARE, OUT, f"evaluation.every={every}", "federation.rounds=3", "evaluation.cohort=2")
    guess, real = estimate(scenario).round, simulate(scenario, runs=tmp_path).totals
    one, three = (totals.select(role="evaluation") for totals in (guess, real))
    assert 3 * one.raw == pytest.approx(three.raw, abs=3)
    assert 3 * one.sent == pytest.approx(three.sent, abs=3)


def test_k_means_may_leave_fewer_than_foretold(tmp_path) -> None:
    scenario = small(*ADC, *PLAIN, "federation.rounds=1")
    guess, result = estimate(scenario), simulate(scenario, runs=tmp_path)
    for role in ("smashed", "cut_gradient", "front_weights"):
        foretold, real = guess.round.select(role=role), result.totals.select(role=role)
        assert foretold.raw == real.raw
        assert foretold.coded == pytest.approx(real.coded, rel=0.02), role
    assert guess.round.cut.sent == pytest.approx(result.totals.cut.sent, rel=0.02)
    assert guess.steps == len([row for row in table(result.folder / "ledger.csv") if row["role"] == "smashed"])


@pytest.mark.parametrize(
    "overrides", [[*ADC, "model.args.proj_drop_rate=0.2"], [*PRIVATE, OUT], [*FL, "model.args.drop_path_rate=0.5"]]
)
def test_nothing_is_drawn_from_global_state(overrides: list[str]) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        guess = estimate(small(*overrides))
        assert torch.equal(torch.get_rng_state(), state)
        found.append((guess.round, guess.once, guess.client, guess.server, guess.operations))
    assert found[0] == found[1]


def test_differences_take_the_bits_of_their_codec() -> None:
    """Half of a cohort was not in the round before, and is sent whole weights."""
    sizes = {}
    for bits in (2, 4):
        delta = f"compression.front_weights.delta={{kind: uniform, bits: {bits}}}"
        found = estimate(small("federation.clients=4", "federation.cohort=2", *PLAIN, delta)).round
        sizes[bits] = [found.select(direction=way, role="front_weights") for way in ("up", "down")]
    for two, four in zip(sizes[2], sizes[4], strict=True):
        assert two.raw == four.raw
    numbers = sizes[2][0].raw // 4
    assert sizes[4][0].sent - sizes[2][0].sent == pytest.approx(numbers / 4, abs=64)
    assert sizes[4][1].sent - sizes[2][1].sent == pytest.approx(numbers / 8, abs=64)
    assert sizes[4][1].sent > numbers * 4 / 2


def test_it_needs_no_data_where_the_scenario_says_what_it_holds(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = small("data.path=nobody/nothing", "data.limit=null", "data.expect={classes: 7, train: 1000, test: 10}")
    found = estimate(plan)
    assert (found.examples, found.classes, found.assumed) == (900, 7, True)
    assert not list(tmp_path.iterdir())


def test_images_are_weighed_where_they_lie_on_this_machine(tmp_path, monkeypatch) -> None:
    known = "data.expect={classes: 10, train: 1438, test: 359}"
    found = estimate(small(known, OUT))
    assert (found.images_bytes, found.assumed) == (64 * 96, False)
    assert found.images_factor == found.total_sent / (64 * 96)
    assert "times what the images weigh" in text(found)
    monkeypatch.chdir(tmp_path)
    away = estimate(small("data.path=nobody/nothing", "data.limit=null", known))
    assert (away.images_bytes, away.images_factor) == (None, None)
    assert "not weighed, as nothing was loaded" in text(away)


def test_a_budget_of_all_bytes_ends_after_as_many_rounds_as_it_takes() -> None:
    each = estimate(small()).round.total.sent
    for budget in (f"{{kind: total_bytes, bytes: {5 * each}}}", f"{{kind: images, times: {5 * each / (64 * 96)}}}"):
        found = estimate(small("federation.rounds=99", f"budget={budget}"))
        assert found.rounds == 5
        assert abs(found.limit - 5 * each) <= 1
        assert "of total bytes; fewer bytes a round mean more rounds" in text(found)
    found = estimate(small(*FL, "federation.rounds=99", "budget={kind: total_bytes, bytes: 100kB}"))
    assert found.rounds == -(-100_000 // found.round.total.sent)


def test_who_holds_out_trains_on_less() -> None:
    assert estimate(small()).examples == 96
    assert estimate(small(OUT)).examples == 72


def test_memory_counts_parameters_moments_and_copies() -> None:
    one, two = (estimate(small(f"federation.mode={mode}")) for mode in ("sfl-v2", "sfl-v1"))
    assert one.client.state >= 4 * 4 * one.client.parameters  # weights, gradients and Adam's two moments
    assert two.server.state == 2 * one.server.state
    assert one.client.activations > 0


def test_an_auxiliary_net_takes_memory_at_the_client() -> None:
    plain, local = (
        estimate(small(DEPTH, *more)).client for more in ([], ["phases=[{kind: local, rounds: 1}, frozen]"])
    )
    block, norm_and_head = 12 * 16 * 16 + 13 * 16, 2 * 16 + 16 * 10 + 10
    assert local.parameters == plain.parameters + block + norm_and_head
    assert local.state == plain.state + 4 * 4 * (block + norm_and_head) + 4 * 16  # step counts: 16 tensors more
    assert local.activations > plain.activations
    fitted = estimate(small(DEPTH, "phases=[{kind: local, align_every: 1}]")).client
    assert fitted.state == local.state - 4 * 16  # in a new optimiser, whose step counts are not told
    assert fitted.activations > 1.2 * local.activations


def test_each_mini_batch_on_its_way_takes_its_graph_and_the_weights_that_it_went_through() -> None:
    plain, ahead = (estimate(small(f"training.ahead={ahead}")) for ahead in (0, 2))
    assert ahead.client.activations == 3 * plain.client.activations
    assert ahead.client.state - plain.client.state == 3 * 4 * plain.client.parameters
    assert ahead.server == plain.server


def test_copies_of_samples_take_the_memory_that_a_run_keeps_of_them(tmp_path) -> None:
    """Each client's are in its state folder, and all of them in the server's checkpoint."""
    delta = [f"compression.{role}.delta=true" for role in ("smashed", "cut_gradient")]
    for more in ([], ["compression.cache.disk=30kB"], [TOKENS, "data.augment=flip", "data.variants=2"]):
        plan = small(*delta, "federation.rounds=6", *more)
        found, folder = estimate(plan), simulate(plan, runs=tmp_path, observers=()).folder
        here = copies(folder / "checkpoints/round-000006/cache.safetensors")
        each = [copies(folder / f"clients/{client:06d}/copies-000006.safetensors") for client in range(3)]
        assert here == sum(each)
        assert (found.server.copies, found.client.copies) == pytest.approx((here, max(each)), rel=0.05)
        assert found.server.copies >= here
        assert f"{size(found.client.copies)} copies of samples" in text(found)
    assert estimate(small()).server.copies == 0


def copies(path: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(path).values() if tensor.is_floating_point())


def test_samples_that_cross_as_differences_and_then_into_memory_are_foretold(tmp_path) -> None:
    """Of three rounds one is all whole, one all differences, and one fills memory."""
    phases = ["phases=[{kind: gradient, rounds: 2}, frozen]", "memory={passes: 1}", "federation.rounds=4"]
    coarse = "compression.smashed={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 2}, lossless: none}"
    plan = small(*BARE, *phases, coarse)
    guess, real = estimate(plan).round, simulate(plan, runs=tmp_path).totals
    for role in ("smashed", "targets", "cut_gradient"):
        assert 4 * guess.select(role=role).coded == pytest.approx(real.select(role=role).coded, abs=9), role


@pytest.mark.parametrize("more", [[], ["data.augment=flip", "data.variants=2"]], ids=["images", "variants"])
def test_ids_of_samples_take_the_bits_of_the_largest_that_a_client_has(more: list[str], tmp_path) -> None:
    """Of 32 and of 64 samples, in two frames of 16 a round: each as many ids, and as many bits of what is skipped."""
    skipping = "compression.smashed={delta: true, skip: 0.9, lossless: none, codec: {kind: uniform, bits: 8}}"
    plan = small(*BARE, skipping, "federation.rounds=4", *more)
    guess, real = estimate(plan).round, simulate(plan, runs=tmp_path).totals
    bits = 6 if more else 5
    assert guess.select(role="ids").coded == 3 * 2 * (1 + 16 * bits / 8 + 1 + 16 / 8)
    for role in ("ids", "smashed", "targets", "cut_gradient"):
        assert 4 * guess.select(role=role).coded >= real.select(role=role).coded, role
    assert 4 * guess.select(role="ids").coded < 1.2 * real.select(role="ids").coded
    assert real.select(role="smashed").coded < 3.9 * guess.select(role="smashed").coded  # some were skipped


def test_a_joint_step_takes_the_memory_of_all_its_clients() -> None:
    psl = "federation.mode=psl"
    one, three, two = (
        estimate(small(*changes)).server for changes in ([], [psl], [psl, "federation.wave=2"])
    )  # fmt: skip
    assert three.activations == 3 * one.activations
    assert two.activations == 2 * one.activations
    assert three.state == one.state


@pytest.mark.parametrize("overrides", [[], [TOKENS], BOTTLENECK], ids=["none", "tokens", "bottleneck"])
def test_private_labels_move_the_tail_to_the_client(overrides: list[str]) -> None:
    found, shared = estimate(small(*PRIVATE, *overrides)), estimate(small(DEPTH, *overrides))
    operations = found.operations
    assert operations.tail > 0
    assert operations.back + operations.tail == pytest.approx(shared.operations.back)
    assert found.client.parameters + found.server.parameters == shared.client.parameters + shared.server.parameters
    assert found.client.parameters > shared.client.parameters


def test_with_fl_the_client_computes_it_all() -> None:
    found = estimate(small(*FL))
    assert found.round.cut.sent == 0
    assert found.operations.server == 0
    assert (found.operations.client_ratio, found.operations.server_ratio) == (1, 1)
    assert found.client.parameters == found.server.parameters
    assert found.client.activations > 0 == found.server.activations
    assert "0.00" not in text(found).split("operations")[1].splitlines()[0]


def test_seconds_of_a_round_are_foretold_by_profile(tmp_path) -> None:
    """Two clients that train in turn: a run takes both their seconds."""
    link = "{{kind: fixed, up: {}Mbit, down: 20Mbit, latency: 60ms}}"
    profiles = ", ".join(
        f"{name}: {{share: 0.5, link: {link.format(rate)}, device: {{flops: 5MFLOPS, memory: {memory}}}}}"
        for name, rate, memory in (("slow", 1, "1kB"), ("fast", 9, "1GB"))
    )
    scenario = small(*BARE, "federation.mode=sl", "federation.clients=2", f"federation.profiles={{{profiles}}}")
    found = estimate(scenario)
    assert set(found.simulated) == {Terms("slow"), Terms("fast")}
    (slow, same), (fast, _) = found.simulated[Terms("slow")], found.simulated[Terms("fast")]
    assert slow == same > fast
    (first, _) = simulate(scenario, runs=tmp_path).rounds
    assert first.simulated_seconds == pytest.approx(slow + fast, rel=0.01)
    told = text(found)
    assert f"simulated, slow   {slow:.1f} s a round for a client alone" in told
    assert re.search(r"memory, slow      1\.00 kB, less than the [\d.]+ kB that a client needs, also for mini-", told)
    assert "memory, fast      1.00 GB, enough" in told


def test_the_mini_batch_that_fits_is_told_and_fits() -> None:
    """By estimates of their own, of that size and of one image more."""

    def told(memory: int, batch: int, *more: str) -> str:
        profile = f"federation.profiles={{phone: {{share: 1, device: {{memory: {memory}B}}}}}}"
        lines = text(estimate(small(*BARE, profile, f"training.batch_size={batch}", *more)))
        (line,) = [line for line in lines.splitlines() if line.startswith("memory, phone")]
        return line

    assert told(1, 16).endswith("also for mini-batches of one image and a lower cut: take a smaller model")
    client = estimate(small(*BARE)).client
    memory = client.state + client.activations * 2 // 3
    (fits,) = map(int, re.findall(r"training\.batch_size (\d+) fits", told(memory, 16)))
    assert 1 <= fits < 16
    assert told(memory, fits).endswith("enough")
    assert not told(memory, fits + 1).endswith("enough")


def test_a_target_that_no_point_is_foretold_to_keep_is_told() -> None:
    link = "{{kind: fixed, up: {}Mbit, down: 20Mbit, latency: 60ms}}"
    profiles = ", ".join(f"{name}: {{share: 0.5, link: {link.format(up)}}}" for name, up in (("slow", 1), ("fast", 9)))
    points = "a: {}, b: {compression: {smashed: {codec: float16}, cut_gradient: {codec: float16}}}"

    def told(target: str) -> tuple[Any, list[str]]:
        control = f"control={{kind: drift_plus_penalty, target: {{{target}}}, points: {{{points}}}}}"
        found = estimate(small(*BARE, "federation.clients=4", f"federation.profiles={{{profiles}}}", control))
        return found, [
            line.removeprefix("target").strip() for line in text(found).splitlines() if line.startswith("target")
        ]

    found, _ = told("kind: seconds_per_round, seconds: 1s")
    slow, fast = (found.simulated[Terms(name, "b")][1] for name in ("slow", "fast"))
    middle = (slow + fast) / 2
    assert told(f"kind: seconds_per_round, seconds: {slow * 1.001}s")[1] == []
    assert told(f"kind: seconds_per_round, seconds: {middle}s")[1] == [
        f"{middle:.3g} s a client's round: even at b a client of slow takes {slow:.3g} s, above it, before the lossless"
        " stage"
    ]
    each = found.each[Terms("slow", "b")]
    assert each == found.each[Terms("fast", "b")] < found.each[Terms("fast", "a")]
    rates = each / slow, each / fast
    _, lines = told(f"kind: bytes_per_second, bytes: {round(sum(rates) / 2)}B")
    (line,) = lines
    assert f"/s a client: even at b a client of fast has {size(round(rates[1]))}/s while it trains" in line
    rounds, clients = found.rounds, found.scenario.federation.sampled
    assert told(f"kind: all_bytes, bytes: {rounds * clients * each}B")[1] == []
    assert told("kind: all_bytes, bytes: 1kB")[1] == [
        f"1.00 kB in all: even at b it is {size(rounds * clients * each)}, above it, before the lossless stage"
    ]
    assert told("kind: all_bytes, bytes: 1kB, rounds: 1")[1] == [
        f"1.00 kB by round 1: even at b it is {size(clients * each)}, above it, before the lossless stage"
    ]
