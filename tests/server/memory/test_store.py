"""What the server keeps of smashed data: bit for bit, within its bounds, over interruptions, and in any order."""

import pytest
import torch
from split_server import KEY, Door, weights

from splitfed.errors import RunError, WireError
from splitfed.federation.memory import Memory
from splitfed.server.memory.alter import Alter
from splitfed.server.memory.replay import replay
from splitfed.server.memory.store import Store

THREE = "compression.smashed.codec={kind: uniform, bits: 3, rotation: true}"
REDUCERS = [
    "none", "{kind: discard_tokens, kept_tokens: 0.5}", "{kind: adc, ratio: 0.4}",
    "{kind: merge_samples, kept_samples: 0.5}", "{kind: topk, ratio: 0.25}", "{kind: c3sl, r: 2}",
]  # fmt: skip


class Kept(Door):
    """A split server whose open round keeps what clients send."""

    def __init__(self, folder, *overrides, disk=10**9, coded=True, clients=(4, 5)):
        super().__init__(folder, *overrides, clients=clients)
        self.store = Store(folder / "memory", self.cut, disk, coded)
        self.clients = clients
        self.begin(2)

    def begin(self, round):
        self.server.start_round(round, 1e-3, dict.fromkeys(self.clients, 100), None, 0, self.store)
        self.round = round

    def send(self, client, *steps, others=False):
        session = self.server.open(client, self.round)
        if others:  # images are drawn by step alone
            self.front.pos_embed.data += 1
        frames = [self.frame(step, client=client, round=self.round)[0].buffer for step in steps]
        for frame in frames:
            self.cut.unpack_stored(session.handle(frame))
        return [self.cut.batch(self.cut.unpack_up(frame)) for frame in frames]


def equal(one, other):
    assert torch.equal(one.smashed, other.smashed)
    assert torch.equal(one.targets, other.targets)
    assert one.side.keys() == other.side.keys()
    assert all(torch.equal(one.side[name], other.side[name]) for name in one.side)
    assert one.frame.meta == other.frame.meta
    assert one.examples == other.examples


@pytest.mark.parametrize("reducer", REDUCERS)
def test_what_is_kept_is_what_was_decoded(reducer, tmp_path):
    kept = Kept(tmp_path, f"compression.reducer={reducer}", THREE)
    sent = kept.send(4, 1, 2) + kept.send(5, 1)
    kept.store.close()
    places = kept.store.places()
    assert [place.segment.client for place in places] == [4, 4, 5]
    for batch, place in zip(sent, places, strict=True):
        equal(kept.store.read(place), batch)
    assert (tmp_path / "memory").stat().st_mode & 0o077 == 0
    assert kept.store.size == sum(path.stat().st_size for path in (tmp_path / "memory").iterdir())


@pytest.mark.parametrize("reducer", REDUCERS)
def test_in_16_bits_it_is_that_but_for_rounding(reducer, tmp_path):
    kept = Kept(tmp_path, f"compression.reducer={reducer}", THREE, coded=False)
    (sent,) = kept.send(4, 1)
    kept.store.close()
    found = kept.store.read(kept.store.places()[0])
    assert torch.equal(found.smashed, sent.smashed.half().float())
    assert torch.equal(found.targets, sent.targets)
    assert found.frame.meta == sent.frame.meta
    assert all(torch.equal(found.side[name], sent.side[name]) for name in sent.side)


def test_going_over_it_as_it_came_teaches_what_the_frames_themselves_do(tmp_path):
    for name in ("plain", "kept"):
        (tmp_path / name).mkdir()
    plain, kept = Door(tmp_path / "plain"), Kept(tmp_path / "kept", clients=(4,))
    plain.server.start_round(2, 1e-3, {4: 100}, None, 0)
    session = plain.server.open(4, 2)
    for step in (1, 2, 3):
        plain.cut.unpack_taken(session.handle(plain.frame(step)[0].buffer))
    kept.send(4, 1, 2, 3)
    kept.store.close()
    kept.server.end_round()
    before = weights(kept.pool.trainer)
    list(kept.server.learn(3, 1e-3, replay(kept.store, 16, KEY, 3, order="arrival")))
    after = weights(kept.pool.trainer)
    assert all(tensor.equal(after[name]) for name, tensor in weights(plain.pool.trainer).items())
    assert not all(tensor.equal(after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("window", [1, 10_000, 1 << 28])
def test_a_pass_goes_over_each_sample_once_and_mixes_clients(window, tmp_path):
    kept = Kept(tmp_path, THREE)
    sent = kept.send(4, *range(1, 6)) + kept.send(5, *range(1, 6), others=True)
    kept.store.close()

    def rows(key):
        return list(replay(kept.store, 8, key, 3, window=window))

    batches, everything = rows(KEY.at(1)), torch.cat([batch.smashed for batch in sent])
    found = torch.cat([batch.smashed for batch in batches])
    assert [len(batch.targets) for batch in batches] == [8] * 7 + [4]
    order = torch.cdist(found.flatten(1), everything.flatten(1)).argmin(1)
    assert torch.equal(found, everything[order])
    labels = torch.cat([batch.targets for batch in sent])
    assert torch.equal(torch.cat([batch.targets for batch in batches]), labels[order])
    assert [b.smashed.tolist() for b in rows(KEY.at(1))] == [b.smashed.tolist() for b in batches]
    assert [b.smashed.tolist() for b in rows(KEY.at(2))] != [b.smashed.tolist() for b in batches]
    if window > 10_000:
        assert all(0 < (order[start : start + 8] < 30).sum() < 8 for start in range(0, 56, 8))


def test_what_cannot_be_taken_apart_is_shuffled_whole(tmp_path):
    kept = Kept(tmp_path, "compression.reducer={kind: c3sl, r: 2}")
    sent = kept.send(4, 1, 2, 3)
    kept.store.close()
    found = list(replay(kept.store, 4, KEY, 3, separable=False))
    assert sorted(b.smashed.sum().item() for b in found) == sorted(b.smashed.sum().item() for b in sent)


def test_what_does_not_fit_is_not_kept_and_told_once(tmp_path, caplog):
    kept = Kept(tmp_path, disk=9_000)
    kept.send(4, 1, 2, 3, 4, 5, 6)
    kept.store.close()
    assert kept.store.size <= 9_000
    assert 0 < len(kept.store.places()) < 6
    assert kept.store.batches(4) == 6  # it is not asked for them again
    assert [record.message for record in caplog.records] == [
        "round 2: memory is full: memory.disk allows 9000 bytes, so what comes from now on is not kept; more room, or "
        "stronger compression, keeps more"
    ]


def test_state_goes_on_and_what_an_interrupted_round_left_is_deleted(tmp_path):
    kept = Kept(tmp_path, THREE)
    sent = kept.send(4, 1, 2)
    kept.store.close()
    state = kept.store.state_dict()
    kept.begin(3)
    kept.send(5, 1)  # and the process dies
    again = Store(tmp_path / "memory", kept.cut, 10**9, coded=True)
    again.load_state_dict(state)
    assert again.state_dict() == state
    equal(again.read(again.places()[1]), sent[1])
    again.open(3)
    assert [path.name for path in (tmp_path / "memory").iterdir()] == ["client-000004-round-000002.bin"]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_told_by_name(harm, tmp_path):
    kept = Kept(tmp_path)
    kept.send(4, 1)
    kept.store.close()
    state, (path,) = kept.store.state_dict(), (tmp_path / "memory").iterdir()
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:-1] if harm == "cut" else content)
    if harm == "remove":
        path.unlink()
    with pytest.raises(RunError, match=rf"{path}: memory (is damaged|cannot be read) .*: bring the file back, or"):
        kept.store.load_state_dict(state)
    with pytest.raises(RunError, match=str(path)):
        kept.store.read(kept.store.places()[0])


def test_who_is_refused_leaves_nothing(tmp_path):
    kept = Kept(tmp_path)
    kept.send(4, 1)
    session = kept.server.open(5, 2)
    session.handle(kept.frame(1, client=5)[0].buffer)
    huge = kept.frame(2, client=5)
    activations = huge[1].detach() * 1e9
    plan, targets = kept.cut.plan(activations, huge[2], KEY)
    with pytest.raises(Exception, match="diverges"):
        session.handle(kept.cut.pack_step(plan, activations, targets, 6, KEY, (2, 5, 2)).buffer)
    kept.server.settle(5, taken=False)
    kept.store.close()
    assert {place.segment.client for place in kept.store.places()} == {4}


def test_the_same_frame_again_is_kept_once(tmp_path):
    kept = Kept(tmp_path)
    session, frame = kept.server.open(4, 2), kept.frame(1)[0].buffer
    assert session.handle(frame) == session.handle(frame)
    with pytest.raises(WireError):
        session.handle(kept.frame(3)[0].buffer)
    kept.store.close()
    assert len(kept.store.places()) == 1


def test_forgotten_files_stay_as_long_as_checkpoints_name_them(tmp_path):
    kept = Kept(tmp_path)
    kept.store = store = Store(tmp_path / "memory", kept.cut, 10**9, coded=True, checkpoints=2)
    kept.begin(2)
    kept.send(4, 1)
    kept.send(5, 1)
    store.close()
    store.forget({4}, 3)
    assert {place.segment.client for place in store.places()} == {5}
    names = lambda: {path.name[:13] for path in (tmp_path / "memory").iterdir()}  # noqa: E731
    for round, left in ((4, {"client-000004", "client-000005"}), (5, {"client-000005"})):
        store.expire(round)
        assert names() == left
    store.delete()
    assert not (tmp_path / "memory").exists()


def test_alterations_keep_prefix_tokens_and_sums_of_labels():
    inputs = torch.arange(4 * 9 * 2.0).view(4, 9, 2)
    altered, targets = Alter(Memory(drop_tokens=0.5, smoothing=0.1), 1, 5)(inputs, torch.tensor([0, 1, 2, 3]), KEY)
    assert altered.shape == (4, 5, 2)
    assert torch.equal(altered[:, 0], inputs[:, 0])
    assert all(row.tolist() in inputs[i].tolist() for i, sample in enumerate(altered) for row in sample)
    assert targets[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    mixed, targets = Alter(Memory(mix=1.0), 1, 5)(inputs, torch.tensor([0, 1, 2, 3]), KEY)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 4)
    share = targets.max(1).values[0]
    found = [
        (i, j)
        for i in range(4)
        for j in range(4)
        if torch.allclose(mixed[0], share * inputs[i] + (1 - share) * inputs[j])
    ]
    assert found
    plain, same = Alter(Memory(), 1, 5)(inputs, torch.tensor([0, 1, 2, 3]), KEY)
    assert plain is inputs
    assert same.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("reducer", [*REDUCERS, "{kind: random_topk, ratio: 0.25, alpha: 0.1}"])
def test_samples_that_can_be_taken_apart_are_restored_alone_as_together(reducer, tmp_path):
    kept = Kept(tmp_path, f"compression.reducer={reducer}")
    first, second = kept.send(4, 1, 2)
    restore = kept.cut.reducer.restore
    alone = torch.cat([restore(batch.smashed, batch.side, batch.frame.meta) for batch in (first, second)])
    side = {name: torch.cat([first.side[name], second.side[name]]) for name in first.side}
    if kept.cut.reducer.separable:
        assert torch.equal(restore(torch.cat([first.smashed, second.smashed]), side, first.frame.meta), alone)
    else:
        assert len(alone) == 12
        assert len(first.smashed) < 6
