"""What both ends keep of samples: equal bit for bit, whatever becomes of frames, and what it makes smaller."""

import math
import random
from itertools import pairwise
from operator import mul
from threading import Lock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from splitfed import Scenario
from splitfed.compression.codecs.base import Packet
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.settings import Uniform
from splitfed.compression.codecs.transform.rotation import unrotate
from splitfed.compression.expect import Geometry
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import WireError
from splitfed.model.build import pixel_stats
from splitfed.run.ledger import Ledger
from splitfed.seeds import Key
from splitfed.server.back.caches import Caches
from splitfed.server.back.round_context import RoundContext
from splitfed.server.back.session import SplitSession
from splitfed.split.assembly import assemble
from splitfed.split.computing.rehearsal import RandomBatch
from splitfed.split.copies import SKIPPED, Copies, Visit, flat, unflat
from splitfed.split.cut import Cut
from splitfed.testing import cut_for, plan_for
from splitfed.wire.frame import Place

GEOMETRY = Geometry(8, 5, 6, 1, 10)
FEW = {"codec": {"kind": "uniform", "bits": 2, "rotation": True}, "lossless": "none"}
BOTH = {"smashed": FEW | {"delta": True}, "cut_gradient": FEW | {"delta": True}}
REDUCERS = ("none", {"kind": "discard_tokens", "kept_tokens": 0.6}, {"kind": "topk", "ratio": 0.3})


class Ends:
    """A client and a server that share a cut, without a model: the gradient is drawn."""

    def __init__(self, reducer="none", most: int = 1000, **packings) -> None:
        self.cut = cut_for(reducer, GEOMETRY, **(packings or BOTH))
        self.client, self.server = (Copies({}, most) for _ in range(2))
        self.step = 0

    def cross(self, ids: list[int], activations: torch.Tensor):
        """Take a mini-batch across and back; return the packed step, what the server saw, and the gradient."""
        self.step += 1
        place, key = Place(1, 0, self.step), Key(self.step)
        attention = torch.rand(len(ids), GEOMETRY.tokens, generator=key.generator())
        plan = plan_for(self.cut.reducer, activations, key, attention)
        smashed, visit = plan.reduce(activations), Visit(torch.tensor(ids), self.client)
        labels = torch.zeros(len(ids), dtype=torch.int64)
        packed = self.cut.pack_step(plan, smashed, labels, len(ids), key, place, visit)
        arrived = self.cut.batch(self.cut.unpack_up(packed.buffer), self.server)
        gradient = 1e-3 * torch.randn(smashed.shape, generator=key.at("gradient").generator())
        down = self.cut.pack_gradient(arrived.frame, gradient, 1.0, key, arrived.visit)
        came = self.cut.unpack_gradient(down.buffer, smashed, visit).tensors["cut_gradient"]
        if visit.seen is not None:
            assert visit.seen.equal(arrived.smashed)
        return packed, smashed, arrived, (gradient, came)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys() and all(one[name][role].equal(other[name][role]) for role in one[name])
        for name in one
    )


def draw(ids: list[int], step: int) -> torch.Tensor:
    """Activations of samples that change slowly."""

    def noise(key: Key) -> torch.Tensor:
        return torch.randn(5, 6, generator=key.generator())

    return torch.stack([noise(Key(one)) + 0.01 * noise(Key(one).at(step)) for one in ids])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_both_ends_have_the_same_copies_after_every_step(data):
    packings = {
        role: FEW | {"delta": data.draw(st.sampled_from([False, True, {"kind": "float8"}]))} for role in BOTH
    }  # fmt: skip
    packings["smashed"] |= {"skip": data.draw(st.sampled_from([None, 0.9, 0.999, 1.5]))}
    if not any(p["delta"] for p in packings.values()) and packings["smashed"]["skip"] is None:
        packings["cut_gradient"]["delta"] = True
    room = data.draw(st.sampled_from([0, 7, 1000]))
    ends = Ends(data.draw(st.sampled_from(REDUCERS)), room, **packings)
    for step in range(6):
        ids = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True))
        ends.cross(ids, draw(ids, step))
        assert equal(ends.client.now, ends.server.now)
    assert len(ends.client.now) <= room


@pytest.mark.parametrize("reducer", REDUCERS)
def test_copies_are_what_a_plain_loop_makes(reducer):
    """With float16 as the codec, m + Q(x - m) is plain arithmetic, here value by value."""
    half = {"codec": "float16", "lossless": "none", "delta": True}
    ends, kept = Ends(reducer, smashed=half), {}
    for step in range(4):
        ids = [3, 1, 2] if step % 2 else [1, 3]
        _, smashed, arrived, _ = ends.cross(ids, draw(ids, step))
        where = arrived.visit.places
        for row, one in enumerate(ids):
            size = 5 if where is None or reducer["kind"] == "discard_tokens" else 30
            copy = kept.setdefault(one, torch.zeros(size, *smashed.shape[2:]))
            for k, place in enumerate(range(smashed.shape[1]) if where is None else where[row].tolist()):
                change = (smashed[row, k] - copy[place]).half()
                copy[place] = (copy[place].double() + change.double()).half().float()
                assert arrived.smashed[row, k].equal(copy[place])


def test_the_error_falls_at_every_visit_of_a_front_that_stands_still():
    ends, x = Ends(smashed=FEW | {"delta": True}), draw(list(range(8)), 0)
    errors = [float((ends.cross(list(range(8)), x)[2].smashed - x).norm(dim=(1, 2)).max()) for _ in range(6)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0] / 100
    alone = Ends(smashed=FEW | {"skip": 2.0})
    first, later = ([float((alone.cross([1], x[:1])[2].smashed - x[:1]).norm())] for _ in range(2))
    assert later[0] > first[0] / 3  # without differences nothing is gained


def test_gradients_are_of_samples_whatever_the_size_of_their_mini_batch():
    ends = Ends(cut_gradient={"codec": "float32", "lossless": "none", "delta": True})
    for ids in ([1, 2, 3, 4], [4], [4, 5]):
        _, _, _, (gradient, came) = ends.cross(ids, draw(ids, 0))
        assert torch.allclose(came, gradient, rtol=2e-3, atol=1e-9)
    last = ends.client.now[4]["cut_gradient"].float() / 2**10
    assert torch.allclose(last, 2 * gradient[0], rtol=2e-3, atol=1e-9)


def test_a_threshold_above_1_leaves_nothing_out_and_costs_a_bit_a_sample():
    plain, never = Ends(smashed=FEW | {"delta": True}), Ends(smashed=FEW | {"delta": True, "skip": 1.01})
    for step in range(3):
        ids = list(range(8))
        one, _, first, _ = plain.cross(ids, draw(ids, step))
        other, _, second, _ = never.cross(ids, draw(ids, step))
        assert first.smashed.equal(second.smashed)
        assert one.sizes["smashed"] == other.sizes["smashed"]
        assert other.sizes["ids"].sent == one.sizes["ids"].sent + 2  # the width, and 8 bits


@pytest.mark.parametrize("delta", [False, True])
def test_what_is_skipped_is_the_copy_bit_for_bit_and_takes_no_bytes(delta):
    ends, ids = Ends(smashed=FEW | {"delta": delta, "skip": 0.5}), list(range(8))
    ends.cross(ids, draw(ids, 0))
    before = {one: entry["smashed"].float() for one, entry in ends.server.now.items()}
    moved = draw(ids, 1)
    moved[2] = -moved[2]
    packed, _, arrived, _ = ends.cross(ids, moved)
    for one in ids:
        assert arrived.smashed[one].equal(before[one]) == (one != 2)
    assert packed.sizes["smashed"].reduced == 4 * 5 * 6  # one sample


def test_copies_of_whoever_comes_when_there_is_no_room_are_not_kept():
    ends = Ends(most=3)
    for step in range(3):
        ends.cross([5, 1, 9, 4, 2], draw([5, 1, 9, 4, 2], step))
    assert set(ends.client.now) == set(ends.server.now) == {5, 1, 9}
    assert ends.client.full
    assert ends.server.full


def forged(ends: Ends, samples: list[int], **changed: torch.Tensor) -> bytes:
    """A step whose tensors are not those that belong together."""
    plan = plan_for(ends.cut.reducer, draw(samples, 0), Key(0), torch.rand(len(samples), 5))
    visit, up = Visit(torch.tensor(samples), Copies({}, 9)), ends.cut.kept.up

    def lying(*given):
        tensors, outgoing = up(*given)
        return tensors | {name.replace("_", "/"): tensor for name, tensor in changed.items()}, outgoing

    ends.cut.kept.up = lying
    smashed, targets = plan.reduce(draw(samples, 0)), torch.zeros(len(samples), dtype=torch.int64)
    return ends.cut.pack_step(plan, smashed, targets, len(samples), Key(0), Place(1, 0, 1), visit).buffer


@pytest.mark.parametrize(("changed", "why"), [
    ({"ids": torch.tensor([1, 1])}, "twice"),
    ({"ids": torch.tensor([1])}, "1 ids"),
    ({"ids_places": torch.ones(2, 5, dtype=torch.int64)}, "3 places"),
    ({"ids_places": torch.tensor([[2, 1, 0, 0, 0]] * 2)}, "3 places"),
    ({"ids_skipped": torch.tensor([0, 1])}, "no copy"),
    ({"ids_skipped": torch.tensor([0, 2])}, "not said"),
    ({"ids_skipped": torch.tensor([0])}, "not said"),
    ({"smashed": torch.zeros(1, 3, 6, dtype=torch.float64)}, "1 samples of smashed, where 2"),
    ({"smashed_delta": torch.zeros(1, 3, 6, dtype=torch.float64)}, "1 samples of smashed/delta, where 0"),
])  # fmt: skip
def test_frames_that_do_not_fit_the_copies_are_refused_and_keep_nothing(changed, why):
    ends = Ends(REDUCERS[1], smashed=FEW | {"delta": True, "skip": 0.9})
    frame = ends.cut.unpack_up(forged(ends, [1, 2], **changed))
    with pytest.raises(WireError, match=why):
        ends.cut.batch(frame, ends.server)
    assert ends.server.now == {}


def test_a_rotation_is_turned_back_by_an_exact_sum():
    """So it is the same in whatever order a processor adds: that of float32 is not."""
    codec = Uniform(bits=3, rotation=True).build()
    packet = codec.encode(torch.randn(4, 64, generator=Key(0).generator(), dtype=torch.float64), Key(1))
    seed = int.from_bytes(bytes(packet.buffer)[-4:], "little")
    still_rotated = Packet(packet.tag.removesuffix("-rotated"), "float32", packet.shape, bytes(packet.buffer)[:-4])
    rows, matrix = decode(still_rotated, "cpu").tolist(), unrotate(torch.eye(64, dtype=torch.float64), seed).T.tolist()
    exact = [[math.fsum(map(mul, row, column)) for column in matrix] for row in rows]
    assert decode(packet, "cpu").tolist() == exact


class Uncounted(Ledger):
    """Writes nothing: a disk is slow."""

    def __init__(self) -> None: ...
    def add(self, rows): ...
    def retried(self, rows): ...


class Stub:
    """In the place of backs: a gradient that is drawn."""

    def step(self, trainer, batch, key):
        return 1e-3 * torch.randn(batch.smashed.shape, generator=key.generator()), 1.0

    def leave(self, client): ...
    def hung_up(self, client): ...


def test_lost_repeated_and_reordered_frames_never_set_copies_apart():
    """A thousand steps, in rounds of which some do not count: then both ends go on from the last that did."""
    cut, chance, kept = cut_for("none", GEOMETRY, **BOTH), random.Random(0), {}
    caches, steps = Caches(cut), 0
    for round in range(1, 60):
        context = RoundContext(round, cut, Uncounted(), Key(round), lambda: 0.0, Stub(), None, lambda *_: None, Lock())
        session = SplitSession(context, 0, None, copies=caches.open(0))
        mine, old = cut.copies(kept), []
        for step in range(1, chance.randint(2, 40)):
            ids = chance.sample(range(30), chance.randint(1, 8))
            x, key, visit = draw(ids, steps), Key(steps), Visit(torch.tensor(ids), mine)
            plan = plan_for(cut.reducer, x, key)
            labels = torch.zeros(len(ids), dtype=torch.int64)
            packed = cut.pack_step(plan, x, labels, len(ids), key, Place(round, 0, step), visit)
            replies = {session.handle(packed.buffer) for _ in range(chance.choice([1, 1, 1, 2, 3]))}  # some are lost
            (reply,) = replies
            for late in chance.sample(old, min(len(old), chance.choice([0, 0, 1]))):
                with pytest.raises(WireError):
                    session.handle(late)
            old.append(packed.buffer)
            cut.unpack_gradient(reply, x, visit)
            steps += 1
            assert equal(mine.now, session.copies.now)
        if chance.random() < 0.7:
            caches.commit(0, session.copies)
            kept = mine.now
        if chance.random() < 0.2:  # a checkpoint is read back
            state, caches = caches.state_dict(), Caches(cut)
            caches.load_state_dict(state)
            kept = unflat(flat(kept))
        assert equal(kept, caches.open(0).now)
    assert steps > 1000
    caches.forget(0)
    assert caches.open(0).now == {}
    assert caches.state_dict() == {}


@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_rehearsal_counts_first_visits_and_differences(reducer):
    coarse = {"kind": "uniform", "bits": 8}, {"kind": "uniform", "bits": 2}
    cut = cut_for(reducer, GEOMETRY, smashed={"codec": coarse[0], "delta": coarse[1]})
    ends = cut.copies(), cut.copies()
    one, other = (RandomBatch(8, GEOMETRY, Key(seed), torch.device("cpu")) for seed in (0, 1))
    first, later = (dict(cut.rehearse(batch, Key(0), ends=ends)) for batch in (one, other))
    assert 0 < later["up"]["smashed"].coded < first["up"]["smashed"].coded
    assert later["up"]["ids"] == first["up"]["ids"]
    assert first["up"]["ids"].raw == 0


SHOWN = (1, 2, 4, 8, 16)
SETTINGS = [(bits, more) for more in ("", ", delta: true") for bits in (2, 3, 4)]
SETTINGS += [(3, f", delta: true, skip: {least}") for least in (0.98, 0.95, 0.9)]


class Learning:
    """One client of `digits` and its server, whose front learns from scratch, pass after pass."""

    def __init__(self, smashed: str, images: int, lr: float) -> None:
        scenario = Scenario.load("digits", [f"compression.smashed={smashed}", "federation.clients=1"])
        self.key, self.scenario = Key(scenario.seed), scenario
        self.data = load(scenario.data, scenario.model.image_size, 1, self.key.at("data"))
        self.rows = self.data.partitions[0][:images]
        self.front, self.back, _ = assemble(scenario, 10)
        self.cut = Cut.of(scenario, self.front.geometry(scenario.training.batch_size, 10), torch.device("cpu"))
        self.optimisers = [
            torch.optim.Adam(self.front.parameters(), lr),
            torch.optim.Adam(self.back.parameters(), 3e-4),
        ]
        self.ends = self.cut.copies(), self.cut.copies()
        self.bytes = 0

    def train(self, number: int) -> tuple[float, float]:
        """Go through the images once; return the mean error and the share that was skipped."""
        mean, std = pixel_stats(self.scenario.model)
        found = []
        size, key = self.scenario.training.batch_size, self.key.at(number)
        for batch in batches(self.data.train, self.rows, size, key, mean=mean, std=std, epochs=1):
            found.append(self.step(batch, self.key.at(number, len(found))))
        errors, skipped = zip(*found, strict=True)
        return sum(errors) / len(errors), sum(skipped) / len(self.rows)

    def step(self, batch, key: Key) -> tuple[float, int]:
        """Train a mini-batch; return its error and how many samples of it were skipped."""
        made, (here, there) = self.front(batch.images), self.ends
        plan, targets = self.cut.plan(made, batch.labels, key)
        smashed = plan.reduce(made)
        visit = Visit(batch.rows, here) if here else None
        packed = self.cut.pack_step(plan, smashed, targets, len(targets), key, Place(1, 0, 1), visit)
        frame = self.cut.unpack_up(packed.buffer)
        arrived = self.cut.batch(frame, there)
        self.bytes += sum(packed.sizes[role].sent for role in ("smashed", "ids") if role in packed.sizes)
        seen = arrived.smashed.requires_grad_()
        nn.functional.cross_entropy(self.back(seen), targets).backward()
        smashed.backward(seen.grad)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        error = (seen - smashed).norm() / smashed.norm()
        return float(error.detach()), int(frame.tensors[SKIPPED].sum()) if SKIPPED in frame.tensors else 0


@pytest.mark.long
def test_a_difference_is_worth_a_bit_while_the_front_learns():
    """How far what the back sees is from what the front made, a column a pass, and what crossed; `-s` shows it."""
    last = {}
    for bits, more in SETTINGS:
        codec = f"codec: {{kind: uniform, bits: {bits}, rotation: true, scale_bits: 16}}"
        learning = Learning(f"{{{codec}{more}}}", 128, 3e-3)
        passes = {number: learning.train(number) for number in range(1, SHOWN[-1] + 1)}
        last[bits, more] = passes[SHOWN[-1]][0]
        for name, column in ((f"{bits} bits{more}", 0), ("  of which skipped", 1)):
            cells = "".join(f"{passes[number][column]:9.1%}" for number in SHOWN)
            print(f"{name:34}{cells}{learning.bytes:12,}")
    assert last[2, ", delta: true"] < last[3, ""]
    assert last[3, ", delta: true"] < last[4, ""]
