"""Labels that stay with the clients: two cuts, two exchanges a mini-batch, and the same learning."""

import gc
import weakref
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from channels import losing
from helpers import ADC, PLAIN, small, table
from models import newest
from torch import nn

from splitfed import simulate
from splitfed.clients.steps import PrivateStep
from splitfed.compression.reducers.base import View
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import ModelError, ScenarioError, WireError
from splitfed.model.build import pixel_stats
from splitfed.model.parts import whole_state
from splitfed.run.ledger import Ledger, read_rows
from splitfed.run.observer import Observer
from splitfed.seeds import Key
from splitfed.server.back.passes import Passes
from splitfed.server.back.pools import Shared, Trainer
from splitfed.server.back.private_session import PrivateSession
from splitfed.server.back.server import SplitServer
from splitfed.split.assembly import assemble
from splitfed.split.client_part import ClientPart
from splitfed.split.cut import Cut
from splitfed.wire.frame import Place, pack

KEY = Key(0)
DEPTH = "model.args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}"
SGD = [f"training.{side}.optimiser={{kind: sgd, lr: 0.05}}" for side in ("client", "server")]
PRIVATE = "federation.labels=private"
BARE = [f"compression.{role}.lossless=none" for role in ("tail_smashed", "tail_gradient")]


def private(*overrides: str):
    return small(DEPTH, PRIVATE, *overrides)


def assert_same(found, expected, **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **({"rtol": 0, "atol": 2e-6} | tolerance), msg=name)


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize(("mode", "clients"), [("sl", 3), ("sfl-v1", 3), ("sfl-v2", 1)])
def test_what_is_learnt_is_what_shared_labels_teach(mode, clients, tail, tmp_path):
    """Where one optimiser's rule holds at both sides, it does not matter who holds the end of the model."""
    same = [
        *PLAIN, *SGD, f"federation.mode={mode}", f"federation.clients={clients}", "federation.rounds=2",
        "data.partition={kind: dirichlet, alpha: 2.0}",
    ]  # fmt: skip
    shared = simulate(small(DEPTH, *same), runs=tmp_path / "shared")
    other = simulate(private(*same, *BARE, f"model.tail={tail}"), runs=tmp_path / "private")
    assert_same(newest(other.folder), newest(shared.folder))
    for one, two in zip(other.rounds, shared.rounds, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-5)
    assert "targets" not in {row["role"] for row in table(other.folder / "ledger.csv")}


def test_a_shared_back_is_taught_in_turn_and_tails_are_averaged(tmp_path):
    """`sfl-v2`, against a plain loop over the unsplit model."""
    # The back's momentum outlives the rounds. Not Adam, for which a gradient near zero is as much as any other.
    rates = [*SGD, "training.server.optimiser.momentum=0.9"]
    scenario = private(*PLAIN, *BARE, *rates, "data.partition={kind: dirichlet, alpha: 1.0}", "federation.rounds=2")
    result = simulate(scenario, runs=tmp_path)
    key, training, federation = Key(scenario.seed), scenario.training, scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    parts = assemble(scenario, len(data.classes))
    model, mean_std = parts.whole().train(), pixel_stats(scenario.model)
    torch.set_num_threads(1)
    server = training.server.optimiser.build(list(parts.back.parameters()), 0.0)
    for number in range(1, federation.rounds + 1):
        start = [{n: t.clone() for n, t in part.state_dict().items()} for part in (parts.front, parts.tail)]
        total, images = [{}, {}], sum(len(rows) for rows in data.partitions)
        for one in torch.randperm(federation.clients, generator=key.at("cohort", number).generator()).tolist():
            for part, state in zip((parts.front, parts.tail), start, strict=True):
                part.load_state_dict(state)
            client = training.client.optimiser.build([*parts.front.parameters(), *parts.tail.parameters()], 0.0)
            for batch in batches(
                data.train, data.partitions[one], training.batch_size, key.at("batches", number, one),
                mean=mean_std[0], std=mean_std[1], augment="none", epochs=1,
            ):  # fmt: skip
                nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
                for optimiser in (client, server):
                    optimiser.step()
                    optimiser.zero_grad()
            for sums, part in zip(total, (parts.front, parts.tail), strict=True):
                for name, tensor in part.state_dict().items():
                    sums[name] = sums.get(name, 0) + tensor.double() * len(data.partitions[one]) / images
        for part, sums in zip((parts.front, parts.tail), total, strict=True):
            part.load_state_dict({name: tensor.float() for name, tensor in sums.items()})
    assert_same(newest(result.folder), whole_state(*parts))


class Ends:
    """A split server with one round open for client 4, and the client's own end."""

    def __init__(self, folder, *overrides: str) -> None:
        scenario = self.scenario = private(*overrides)
        folder.mkdir(exist_ok=True)
        self.parts, mine = assemble(scenario, 10), deepcopy(assemble(scenario, 10))
        self.cut = Cut.of(scenario, self.parts.front.geometry(16, 10), torch.device("cpu"))
        self.trainer = Trainer(self.parts.back.train(), scenario.training.server)
        self.ledger = Ledger(folder, 1)
        self.server = SplitServer(Shared(self.trainer), self.cut, self.ledger, KEY, "float32")
        self.server.start_round(2, scenario.training.server.lr(2, 2), {4: 100})
        self.part = ClientPart.of(scenario, mine).train()
        self.step = PrivateStep(self.part, self.cut, "float32")
        self.frames: list[bytes] = []
        self.labels = torch.arange(6) % 10

    def stream(self, session=None):
        session = session or self.server.open(4, 2)
        return SimpleNamespace(exchange=lambda buffer: (self.frames.append(buffer), session.handle(buffer))[1])

    def take(self, stream, step: int = 1, labels=None):
        images = torch.rand(6, 3, 8, 8, generator=KEY.at(step).generator())
        return self.step(
            stream, images, self.labels if labels is None else labels, KEY.at("step", step), Place(2, 4, step)
        )

    def train(self, stream, steps: int = 2) -> None:
        up = down = 0
        for step in range(1, steps + 1):
            _, sent, received = self.take(stream, step)
            up, down = up + sent, down + received
        stream.exchange(pack("end", 2, 4, steps + 1, {}, {"up": up, "down": down}).buffer)

    def first(self, step: int = 1, **more) -> bytes:
        """Return what a client sends first, and nothing else."""

        class Enough(Exception):
            pass

        def stop(buffer):
            raise Enough(buffer)

        with pytest.raises(Enough) as caught:
            self.take(SimpleNamespace(exchange=stop), step, **more)
        return caught.value.args[0]


@pytest.mark.parametrize(
    "overrides", [[], ADC, ["compression.reducer={kind: topk, ratio: 0.2}"]], ids=["none", "adc", "topk"]
)
def test_what_goes_up_first_knows_nothing_of_the_labels(overrides, tmp_path):
    ends = Ends(tmp_path, *overrides)
    known = ends.first()
    assert all(
        ends.first(labels=labels) == known for labels in (ends.labels.flip(0), torch.zeros(6, dtype=torch.int64))
    )
    assert set(ends.cut.unpack_up(known).tensors) <= {"smashed", "side/gaps"}


def test_the_server_takes_neither_targets_nor_frames_out_of_turn(tmp_path):
    ends, shared, gradient = Ends(tmp_path), Ends(tmp_path / "shared"), torch.zeros(6, 5, 16)
    shared.cut.private = False

    def backward(numbers: torch.Tensor, step: int = 1) -> bytes:
        return ends.cut.pack_backward(numbers, KEY, Place(2, 4, step)).buffer

    first = {
        "the tensors that is not a list of 1": shared.first(),
        "'backward', where end, step is expected": backward(gradient),
    }
    second = {
        "'step', where backward is expected": [ends.first(2)],
        "tail_gradient is 'float32'": [backward(gradient[:5]), backward(gradient[:, :4])],
        "step 2, where 2, 4, 1 is next": [backward(gradient, 2)],
    }
    for why, wrong in [*first.items(), *((why, one) for why, some in second.items() for one in some)]:
        ends.server.start_round(2, 1e-3, {4: 104})
        session = ends.server.open(4, 2)
        if why in second:
            session.handle(ends.first())
        with pytest.raises(WireError, match=why):
            session.handle(wrong)
    ends.server.start_round(2, 1e-3, {4: 104}, {4: 1})
    session = ends.server.open(4, 2)
    session.handle(ends.first())
    session.handle(backward(gradient))
    with pytest.raises(WireError, match="more than the 1 that the images of client 4 make"):
        session.handle(ends.first(2))
    packets = ends.cut.encode({"smashed": torch.zeros(6, 5, 16)}, KEY, "")
    for claim in ({}, {"targets": 0}, {"targets": 17}, {"targets": "6"}, {"targets": 5}):
        frame = ends.cut.unpack_up(pack("step", 2, 4, 1, packets, {"examples": 6, **claim}).buffer)
        with pytest.raises(WireError, match="targets"):
            ends.cut.batch(frame)


def test_a_client_takes_no_features_but_those_of_its_samples(tmp_path):
    ends = Ends(tmp_path)
    frame = ends.cut.unpack_up(ends.first())
    for shape in ((5, 5, 16), (6, 6, 16), (6, 0, 16), (6, 5, 8)):
        with pytest.raises(WireError):
            ends.cut.unpack_features(ends.cut.pack_features(frame, torch.zeros(shape), KEY).buffer, 6)
    few = ends.cut.pack_features(frame, torch.zeros(6, 3, 16), KEY)
    assert ends.cut.unpack_features(few.buffer, 6).shape == (6, 3, 16)


@pytest.mark.parametrize(
    "reducer",
    ["none", "{kind: adc, ratio: 0.4}", "{kind: topk, ratio: 0.3}", "{kind: bottleneck, width: 8, hidden: 12}",
     "{kind: c3sl, r: 2}"],
    ids=["none", "adc", "topk", "bottleneck", "c3sl"],
)  # fmt: skip
def test_the_gradients_are_those_of_the_model_in_one_piece(reducer, tmp_path):
    """In float64, through the plan that the client made; the wire carries float32."""
    ends = Ends(tmp_path, f"compression.reducer={reducer}", "training.server.optimiser={kind: sgd, lr: 1.0}")
    plans, make = [], ends.cut.reducer.plan
    ends.cut.reducer.plan = lambda *given: plans.append(make(*given)) or plans[-1]
    before = {name: t.clone() for name, t in ends.parts.back.state_dict().items()}
    loss, _, _ = ends.take(ends.stream())
    (plan,) = plans
    front, back, tail = (part.double() for part in deepcopy(assemble(ends.scenario, 10)))
    expected_part = ClientPart(front, tail)
    images = torch.rand(6, 3, 8, 8, generator=KEY.at(1).generator()).double()
    if "bottleneck" in reducer:  # its plan holds the encoder, of which there is another one in float64
        plan = make(View(front(images).detach(), 1, lambda: None, front.encoder), KEY)
    restored = ends.cut.reducer.restore(plan.reduce(front(images)), plan.side, plan.meta, back.decoder)
    expected = nn.functional.cross_entropy(tail(back(restored)), _double(plan.targets(ends.labels, 10)))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    # The ends compute in float32: steps of about 1 are off by 2e-7 and more, by the CPU.
    names = [name for name, _ in ends.part.named_parameters()]
    for name, mine, whole in zip(names, ends.part.parameters(), expected_part.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), whole.grad, rtol=1e-4, atol=5e-6, msg=name)
    for name, whole in back.named_parameters():
        step = before[name].double() - ends.parts.back.get_parameter(name).double()
        torch.testing.assert_close(step, whole.grad, rtol=1e-4, atol=5e-6, msg=name)


def _double(targets):
    return targets.double() if targets.is_floating_point() else targets


def test_a_correction_is_made_at_both_cuts(tmp_path):
    """FedLite's (arXiv 2201.11865, eq. 6): the gradient, and what the codec took away times the correction."""
    lossy = "{{kind: fedlite, subvectors: 2, centroids: 2, iterations: 3, correction: {}}}"
    roles = ("smashed", "tail_smashed")
    found = []
    for correction in ("0.0", "0.5"):
        codecs = [f"compression.{role}.codec={lossy.format(correction)}" for role in roles]
        ends = Ends(tmp_path / correction, *codecs, *SGD)
        ends.take(ends.stream())
        found.append(({n: p.grad for n, p in ends.part.named_parameters()}, ends.parts.back.state_dict()))
    (plain, plain_back), (corrected, corrected_back) = found
    assert torch.equal(plain["beside.head.weight"], corrected["beside.head.weight"])
    assert not torch.equal(plain["front.cls_token"], corrected["front.cls_token"])
    assert not torch.equal(plain_back["blocks.1.mlp.fc2.weight"], corrected_back["blocks.1.mlp.fc2.weight"])


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_stream_cut_in_the_middle_of_a_step_trains_each_half_once(tmp_path, at):
    whole, cut = Ends(tmp_path / "whole"), Ends(tmp_path / "cut")
    whole.train(whole.stream())
    with losing(cut.server, at) as (stream, handled):
        cut.train(stream)
    assert len(handled) == 6
    assert handled[at - 1] == handled[at]
    assert_same(cut.parts.back.state_dict(), whole.parts.back.state_dict(), atol=0.0)
    for ends in (whole, cut):
        ends.ledger.commit()
    rows, again = (list(read_rows(tmp_path / name / "ledger.csv")) for name in ("whole", "cut"))
    assert rows == again
    wasted = list(read_rows(tmp_path / "cut" / "wasted.csv"))
    assert sum(row.sizes.sent for row in wasted if row.direction == "up") == len(handled[at])


def test_both_ends_count_alike_and_each_tensor_is_counted_once(tmp_path):
    ends = Ends(tmp_path, *ADC)
    ends.train(ends.stream())
    ends.ledger.commit()
    rows = [row for row in read_rows(tmp_path / "ledger.csv") if row.step < 3]
    whole = 4 * 6 * 5 * 16  # float32, six images of five tokens of sixteen features
    for role, way in (("smashed", "up"), ("tail_gradient", "up"), ("tail_smashed", "down"), ("cut_gradient", "down")):
        found = [(row.step, row.direction, row.sizes.raw) for row in rows if row.role == role]
        assert found == [(1, way, whole), (2, way, whole)], role
    assert sum(row.sizes.sent for row in rows if row.direction == "up") == sum(map(len, ends.frames[:4]))
    assert not [row for row in rows if row.role == "targets"]


def test_a_lost_clients_graph_is_let_go(tmp_path, monkeypatch):
    ends, graphs, forward = Ends(tmp_path), [], Passes.forward

    def spy(*given):
        features = forward(*given)
        graphs.append(weakref.ref(features))
        return features

    monkeypatch.setattr(Passes, "forward", spy)
    session = ends.server.open(4, 2)  # as a stream that hangs would keep it
    session.handle(ends.first())
    gc.collect()
    (graph,) = graphs
    assert graph() is not None
    ends.server.settle(4, taken=False)
    gc.collect()
    assert graph() is None


def test_what_a_failed_step_leaves_behind_teaches_nobody(tmp_path):
    """The tail has its gradient already when the one at the first cut fails to come; the worker goes on to others."""
    scenario = private("federation.rounds=1")
    first = simulate(scenario, runs=tmp_path / "first")
    with pytest.MonkeyPatch.context() as patch:
        handle = PrivateSession.handle

        def cut_short(session, buffer: bytes) -> bytes:
            reply = handle(session, buffer)
            return reply[:-1] if b"tail_gradient" in buffer else reply

        patch.setattr(PrivateSession, "handle", cut_short)
        with pytest.raises(WireError):
            simulate(scenario, runs=tmp_path / "failed")
    again = simulate(scenario, runs=tmp_path / "again")
    assert_same(newest(again.folder), newest(first.folder), atol=0.0)


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    changes = (
        *ADC, "training.client_state=keep", "federation.rounds=3", "federation.mode=sfl-v1",
        "model.args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2, proj_drop_rate: 0.1}",
        "compression.tail_smashed.codec={kind: uniform, bits: 8}",
    )  # fmt: skip

    class Stop(Observer):
        def round(self, metrics, sent, finished):
            raise KeyboardInterrupt

    whole = simulate(private(*changes), runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(private(*changes), runs=tmp_path / "cut", observers=[Stop()])
    (folder,) = (tmp_path / "cut").iterdir()
    again = simulate(resume=folder)
    assert_same(newest(again.folder), newest(whole.folder), atol=0.0)
    assert again.totals == whole.totals
    assert again.totals.select(role="tail_weights", direction="up").sent > 0


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["federation.mode=fl"], "federation.labels: with fl no labels leave a client anyway"),
        (["federation.order=arrival"], "federation.labels: with order: arrival another client's update would come"),
        (["federation.labels=shared", "model.tail=1"], "model.tail is 1, but only with labels: private"),
        (["federation.labels=shared", "compression.tail_smashed.codec=float16"],
         "tail_smashed: only with federation.labels: private"),
        (["compression.targets.codec=float16"], "targets.codec: with federation.labels: private no targets cross"),
        (["model.tail=-1"], "model.tail: must be at least 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_private_labels_is_refused(overrides, problem):
    with pytest.raises(ScenarioError) as caught:
        private(*overrides)
    assert problem in str(caught.value)


def test_a_tail_that_leaves_the_server_nothing_is_refused_before_a_run():
    from splitfed.split.assembly import check_model

    with pytest.raises(ModelError, match=r"cut: is 1 and the tail has 2 blocks.* none of the model's 3"):
        check_model(private("model.tail=2"))
    check_model(private("model.tail=1"))
