"""Federated evaluation: clients tell how the model does on images that they never train on."""

import io
import json
import shutil
import struct

import msgpack
import pytest
import rich.console
import torch
from channels import dial, listen
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from helpers import ADC, PLAIN, small, table
from hypothesis import given, settings
from hypothesis import strategies as st
from models import newest
from split_server import KEY, Door, same, wasted, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from waiting import until

from splitfed import compare, simulate
from splitfed.clients import worker as training
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.data.stratify import divide
from splitfed.engines.inline import InlineGrid
from splitfed.errors import RunError, ScenarioError, WireError
from splitfed.model.build import pixel_stats
from splitfed.reports.dataset.describe import describe
from splitfed.reports.dataset.text import head
from splitfed.reports.live.console import Console
from splitfed.reports.live.tensorboard import curves_of
from splitfed.run.client_scores import STANDING as CLIENTS
from splitfed.run.client_scores import Score, Standing, read_scores
from splitfed.seeds import Key
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.replies import checked_score
from splitfed.split.assembly import assemble
from splitfed.split.evaluation import Evaluated
from splitfed.wire.channel import InlineStream
from splitfed.wire.frame import Place, pack

OUT = "evaluation.held_out=0.25"  # 8 of each client's 32 images
PRIVATE = ["federation.labels=private", "model.args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}"]
FL = ["federation.mode=fl", "training.server={}", "compression.front_weights.lossless=none"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.floats(0, 0.99), st.integers(0, 9), st.integers(0, 3))
def test_every_image_is_trained_on_or_held_out(count, share, client, seed):
    labels = torch.randint(5, (100,), generator=Key(seed).generator())
    rows = torch.randperm(100, generator=Key(seed).at("rows").generator())[:count].sort().values
    stays, out = divide(rows, labels, share, Key(seed), client)
    assert sorted([*stays.tolist(), *out.tolist()]) == rows.tolist()
    assert stays.tolist() == sorted(stays.tolist())
    assert out.tolist() == sorted(out.tolist())
    assert len(out) == (0 if count < 2 or not share else min(count - 1, max(1, round(share * count))))
    assert torch.equal(out, divide(rows, labels, share, Key(seed), client)[1])
    if count == 60 and 0.3 < share < 0.7:
        assert not torch.equal(out, divide(rows, labels, share, Key(seed), client + 1)[1])
        assert not torch.equal(out, divide(rows, labels, share, Key(seed + 1), client)[1])


class Watch:
    """What a run trains on, by client, and the tensors that cross to be looked at, with their bytes."""

    def __init__(self, monkeypatch) -> None:
        self.trained: dict[int, set[int]] = {}
        self.tensors: set[str] = set()
        self.looks = self.crossed = 0
        exchange, flow = InlineStream.exchange, training.batches

        def watched(images, rows, size, key, **more):
            self.trained.setdefault(key.path[-1], set()).update(rows.tolist())
            return flow(images, rows, size, key, **more)

        def spied(stream, buffer):
            reply = exchange(stream, buffer)
            for frame in (buffer, reply):
                length = struct.unpack_from("<I", frame, 1)[0]
                entries = msgpack.unpackb(frame[9 : 9 + length])[-1]
                looks = [entry for entry in entries if entry[0].startswith("evaluation/")]
                self.tensors |= {entry[0].removeprefix("evaluation/") for entry in looks}
                self.looks += sum(entry[-1] for entry in looks)
                self.crossed += len(frame)
            return reply

        monkeypatch.setattr(training, "batches", watched)
        monkeypatch.setattr(InlineStream, "exchange", spied)


NUMBERS, LABELS = 4 * 5 * 16, 8  # bytes of an image


@pytest.mark.parametrize(
    ("changes", "tensors", "bytes"),
    [
        (["federation.mode=sfl-v1", *PLAIN], {"smashed", "targets"}, NUMBERS + LABELS),
        (["federation.mode=sl", *PLAIN, "training.batch_size=5"], {"smashed", "targets"}, NUMBERS + LABELS),
        (["compression.reducer={kind: bottleneck, width: 4}"], {"smashed", "targets"}, NUMBERS + LABELS),
        # It takes no part.
        (["compression.reducer={kind: adc, ratio: 0.2}"], {"smashed", "targets"}, NUMBERS + LABELS),
        ([*PRIVATE, "compression.reducer={kind: adc, ratio: 0.2}"], {"smashed", "tail_smashed"}, 2 * NUMBERS),
        ([*PRIVATE, "federation.mode=sfl-v1", "model.tail=0"], {"smashed", "tail_smashed"}, 2 * NUMBERS),
        (FL, set(), 0),
    ],
    ids=["sfl-v1", "sl", "bottleneck", "adc", "private", "private-sfl-v1", "fl"],
)
def test_clients_find_what_the_whole_model_does_on_images_that_nobody_trains_on(
    changes, tensors, bytes, tmp_path, monkeypatch
):
    watch, scenario = Watch(monkeypatch), small(OUT, *changes)
    result = simulate(scenario, runs=tmp_path)
    scores = read_scores(result.folder)

    data = load(scenario.data, scenario.model.image_size, 3, Key(scenario.seed).at("data"))
    parts = assemble(scenario, 10, pretrained=False)
    for part in parts:
        part.load_state_dict({name: newest(result.folder)[name] for name in part.state_dict()})
    model, (mean, std) = parts.whole().eval(), pixel_stats(scenario.model)
    assert [score.client for score in scores[2]] == [0, 1, 2]
    right = 0
    for score in scores[2]:
        rows = torch.tensor(sorted(set(data.partitions[score.client].tolist()) - watch.trained[score.client]))
        assert len(rows) == score.examples == 8
        (batch,) = batches(data.train, rows, 8, KEY, mean=mean, std=std, epochs=1, shuffle=False)
        with torch.no_grad():
            logits = model(batch.images)
        assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits, batch.labels)), rel=1e-5)
        assert score.accuracy == float((logits.argmax(1) == batch.labels).float().mean())
        right += int((logits.argmax(1) == batch.labels).sum())

    last, summary = result.rounds[-1], json.loads((result.folder / "summary.json").read_text())
    each = sorted(score.accuracy for score in scores[2])
    assert last.clients_accuracy == pytest.approx(right / 24)
    assert (last.worst_client, last.median_client, last.best_client) == tuple(each)
    assert [summary[name] for name in CLIENTS] == [getattr(last, name) for name in CLIENTS]
    assert result.rounds[0].examples == 3 * 24  # training images alone

    found = result.totals.select(role="evaluation")
    assert watch.tensors == tensors
    assert found.sent == watch.looks
    assert found.raw == 2 * 24 * bytes
    assert result.totals.cut.sent == result.summary.cut_bytes == watch.crossed
    fronts = [row for row in table(result.folder / "ledger.csv") if row["role"] == "front_weights"]
    assert len([row for row in fronts if row["direction"] == "down"]) == 2 * 2 * 3  # to train, and to evaluate


def test_training_is_as_if_nobody_had_asked(tmp_path):
    """The same images held out, but looked at once only: bytes, losses and weights of training are the same."""
    often, seldom = (
        simulate(small(*ADC, OUT, f"evaluation.every={every}", "training.client_state=keep"), runs=tmp_path)
        for every in (1, 9)
    )
    assert list(read_scores(often.folder)) == [1, 2]
    assert list(read_scores(seldom.folder)) == [2]  # after the last round
    assert [row.train_loss for row in often.rounds] == [row.train_loss for row in seldom.rounds]
    assert same(newest(often.folder), newest(seldom.folder))
    assert seldom.rounds[0].worst_client is None
    assert table(seldom.folder / "metrics.csv")[0]["worst_client"] == ""

    def trained(result):
        rows = (result.folder / "ledger.csv").read_text().splitlines()
        return [row for row in rows if any(f",{role}," in row for role in ("smashed", "cut_gradient"))]

    assert trained(often) == trained(seldom)


def test_a_cohort_is_asked_and_its_bytes_spend_the_budget(tmp_path):
    asked = ["evaluation.cohort=2", "federation.rounds=9", "federation.local_steps=1", "federation.local_epochs=null"]
    free = simulate(small(*PLAIN, OUT, *asked), runs=tmp_path)
    scores = read_scores(free.folder)
    assert {len(of_round) for of_round in scores.values()} == {2}
    assert len({tuple(score.client for score in of_round) for of_round in scores.values()}) > 1
    # Without what is sent to evaluate, a budget of what four rounds send would last for more.
    bytes = free.rounds[3].cut_bytes
    bound = simulate(small(*PLAIN, OUT, *asked, f"budget={{kind: cut_bytes, bytes: {bytes}}}"), runs=tmp_path)
    assert (bound.summary.rounds, bound.summary.stopped) == (4, "budget")
    assert bound.rounds[-1].eval_accuracy is not None


def test_who_has_one_image_trains_on_it_and_is_not_asked(tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    plan = small("evaluation.held_out=0.5", "data.limit=7", "data.partition={kind: linear}", "federation.rounds=1")
    result = simulate(plan, runs=tmp_path)
    data = load(plan.data, 8, 3, Key(0).at("data"))
    sizes = [len(rows) for rows in data.partitions]
    assert 1 in sizes
    asked = {score.client: score.examples for score in read_scores(result.folder)[1]}
    assert asked == {client: round(size / 2) for client, size in enumerate(sizes) if size > 1}
    assert {client: len(rows) for client, rows in watch.trained.items()} == {
        client: size - asked.get(client, 0) for client, size in enumerate(sizes)
    }


# -------------------------------------------------------------------------------------------------------- at the door


class Ask(Door):
    """A split server with an evaluation open, of 8 images of client 4 after round 2, and what a client packs for it."""

    def __init__(self, folder, *overrides: str) -> None:
        super().__init__(folder, *overrides)
        self.server.settle(4, taken=False)
        self.server.end_round()

    def look(self, step: int = 1, images: int = 4, labels=None, client: int = 4):
        activations = self.front(torch.rand(images, 3, 8, 8, generator=KEY.at(step).generator())).detach()
        labels = torch.arange(images) % 10 if labels is None else labels
        return self.looks.pack(activations, labels, KEY, Place(2, client, step)), activations, labels


@pytest.fixture
def ask(tmp_path):
    return Ask(tmp_path)


def test_the_back_evaluates_and_stays_as_it_is(ask):
    before = weights(ask.pool.trainer)
    with ask.server.evaluation(2, {4: 8}) as evaluation:
        session = ask.server.open(4, 2)
        sent = came = 0
        for step in (1, 2):
            packed, activations, labels = ask.look(step)
            reply = session.handle(packed.buffer)
            assert session.handle(packed.buffer) == reply  # a stream that broke: answered again, counted as wasted
            found = ask.looks.unpack_answer(reply, step, 4)
            with torch.no_grad():
                logits = ask.pool.trainer.back(activations)
            assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels, reduction="sum")))
            assert found.right == int((logits.argmax(1) == labels).sum())
            sent, came = sent + packed.total, came + len(reply)
        end = pack("end", 2, 4, 3, {}, {"up": sent, "down": came})
        came += len(session.handle(end.buffer))
        assert not ask.pool.trainer.back.training
        assert len(evaluation.settle(4)) == 2
        with pytest.raises(WireError, match="gone on"):
            session.handle(end.buffer)
    assert ask.pool.trainer.back.training
    assert same(weights(ask.pool.trainer), before)
    assert all(parameter.grad is None for parameter in ask.pool.trainer.back.parameters())
    assert ask.ledger.open.select(direction="up").sent == sent + end.total
    assert ask.ledger.open.select(direction="down").sent == came
    assert {row[3] for row in wasted(ask.ledger.folder)} == {"evaluation", "envelope"}
    with pytest.raises(WireError, match="no part"):
        ask.server.open(4, 2)


def test_what_no_honest_client_sends_is_refused(ask):
    with ask.server.evaluation(2, {4: 8}) as evaluation:
        for client, round in ((5, 2), (4, 1), (4, 3)):
            with pytest.raises(WireError, match="no part in the evaluation"):
                ask.server.open(client, round)
    wrong = {
        "kind": ask.frame()[0],  # a mini-batch to train on
        "where there are 10 classes": ask.look(labels=torch.full((4,), 10))[0],
        "labels from -1": ask.look(labels=torch.full((4,), -1))[0],
        "labels for 4 images": ask.look(labels=torch.zeros(3, dtype=torch.int64))[0],
        "not expected": ask.look(images=17)[0],
        "9 images more, where client 4 holds out 8": ask.look(images=9)[0],
        "is next": ask.look(step=2)[0],
        "frame of round 2, client 3": ask.look(client=3)[0],
        "8 images left": pack("end", 2, 4, 1, {}, {"up": 0, "down": 0}),
    }
    for why, packed in wrong.items():
        with ask.server.evaluation(2, {4: 8}) as evaluation:
            session = ask.server.open(4, 2)
            with pytest.raises(WireError, match=why) as told:
                session.handle(packed.buffer)
            with pytest.raises(WireError, match="gone on without"):
                session.handle(ask.look(images=8)[0].buffer)
            assert evaluation.lost(1e9) == {4}
            assert evaluation.settle(4) is None
            assert evaluation.refused == {4: told.value}
    assert ask.ledger.open.cut.sent == 0
    with ask.server.evaluation(2, {4: 8}) as evaluation:
        session, packed = ask.server.open(4, 2), ask.look(images=8)[0]
        reply = session.handle(packed.buffer)
        with pytest.raises(WireError, match="counts"):
            session.handle(pack("end", 2, 4, 2, {}, {"up": packed.total, "down": 1 + len(reply)}).buffer)
        assert evaluation.settle(4) is None  # it has not come to its end


@pytest.mark.parametrize(
    "meta", [{}, {"loss": 1, "right": 2}, {"loss": 1.0, "right": 5}, {"loss": -1.0, "right": 2}, {"loss": 1.0}]
)
def test_a_server_whose_answer_is_none_is_refused(meta, ask):
    with pytest.raises(WireError):
        ask.looks.unpack_answer(pack("seen", 2, 4, 1, {}, meta).buffer, 1, 4)
    with pytest.raises(WireError, match="step 2"):
        ask.looks.unpack_answer(pack("seen", 2, 4, 2, {}, {"loss": 1.0, "right": 2}).buffer, 1, 4)


def test_several_clients_evaluate_over_grpc_and_one_is_lost(tmp_path):
    ask = Ask(tmp_path)
    with (
        listen(ask.server, streams=3) as listener,
        ask.server.evaluation(2, dict.fromkeys((4, 5, 6), 4)) as evaluation,
    ):
        streams = {client: dial(listener.invite(client, 2)) for client in (4, 5, 6)}
        replies = {}
        for client, stream in streams.items():
            packed, *_ = ask.look(client=client)
            replies[client] = packed.total, stream.exchange(packed.buffer)
        for client in (4, 5):
            up, reply = replies[client]
            streams[client].exchange(pack("end", 2, client, 2, {}, {"up": up, "down": len(reply)}).buffer)
        for stream in streams.values():
            stream.close()
        until(lambda: evaluation.lost(-1) == {6})  # the server has yet to notice
        assert evaluation.lost(0.5) == set()
        ask.now += 1
        assert evaluation.lost(0.5) == {6}
        assert [evaluation.settle(client) == [Evaluated(*_seen(ask))] for client in (4, 5)] == [True, True]
        assert evaluation.settle(6) is None


def _seen(ask: Ask) -> tuple[float, int]:
    _, activations, labels = ask.look()
    with torch.no_grad():
        logits = ask.pool.trainer.back.eval()(activations)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return float(loss), int((logits.argmax(1) == labels).sum())


# ------------------------------------------------------------------------------------------------------------ replies


def reply(metrics: object = None, **more) -> Message:
    honest = {"num-examples": 4, "eval-loss": 1.5, "eval-accuracy": 0.25}
    if not isinstance(metrics, ConfigRecord):
        metrics = MetricRecord({**honest, **(metrics or {})})
    question = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    return Message(RecordDict({"metrics": metrics, **more}), reply_to=question)


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"num-examples": 10**9}, "'num-examples' is 1000000000"),
        ({"num-examples": 5}, "where 4 were announced"),
        ({"eval-loss": float("nan")}, "'eval-loss' is nan"),
        ({"eval-loss": -0.5}, "'eval-loss' is -0.5"),
        ({"eval-loss": 1}, "'eval-loss' is 1: it must be float"),
        ({"eval-accuracy": 1.25}, "'eval-accuracy' is 1.25"),
        ({"eval-accuracy": -0.25}, "'eval-accuracy' is -0.25"),
        ({"eval-accuracy": 0.3}, "no share of 4 images"),
        ({"eval-accuracy": float("nan")}, "'eval-accuracy' is nan"),
        ({"eval-accuracy": 0.5}, "where the server found 1.5 and 0.25"),
        ({"bonus": 1}, "it has 'bonus'"),
        (ConfigRecord({}), "no metrics"),
    ],
)
def test_a_reply_that_cannot_be_true_is_left_out(metrics, why, caplog):
    assert checked_score(reply(metrics), 3, 7, 4, (1.5, 0.25), Refusals()) is None
    assert "round 3: client 7 failed: reply refused: " in caplog.text
    assert why in caplog.text


@pytest.mark.usefixtures("identity")
def test_an_honest_reply_is_taken_and_one_with_more_is_not():
    assert checked_score(reply(), 3, 7, 4, (1.5, 0.25), Refusals()) == Score(3, 7, 4, 1.5, 0.25)
    assert checked_score(reply(), 3, 7, 4, None, Refusals()) == Score(3, 7, 4, 1.5, 0.25)
    assert checked_score(reply(arrays=ArrayRecord()), 3, 7, 4, None, Refusals()) is None


def test_a_lost_client_is_left_out_and_holds_nobody_up(tmp_path, monkeypatch):
    deliver = InlineGrid.deliver

    def without_one(self, message):
        answer, kind = deliver(self, message), message.metadata.message_type
        gone = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
        theirs = kind == "evaluate" and answer.metadata.src_node_id == 1 + 2
        return Message(gone, metadata=answer.metadata) if theirs else answer

    monkeypatch.setattr(InlineGrid, "deliver", without_one)
    result = simulate(small(OUT, "federation.rounds=1"), runs=tmp_path)
    assert [score.client for score in read_scores(result.folder)[1]] == [0, 2]
    assert "round 1: client 1 is lost to its evaluation" in (result.folder / "log.txt").read_text()
    assert result.rounds[0].clients == 3  # it has trained


# ------------------------------------------------------------------------------------------------- what is made of it


def test_worst_median_and_best():
    scores = [Score(1, c, n, 1.0, a) for c, (n, a) in enumerate([(1, 0.0), (8, 0.5), (4, 0.25), (7, 1.0)])]
    assert Standing.of(scores) == Standing((0 + 4 + 1 + 7) / 20, 0.0, 0.375, 1.0)
    assert Standing.of(scores[:3]) == Standing(5 / 13, 0.0, 0.25, 0.5)
    assert Standing.of([]) is None


def test_a_broken_file_of_scores_is_told(tmp_path):
    assert read_scores(tmp_path) == {}
    (tmp_path / "clients.csv").write_text("round,client,examples,loss,accuracy\n1,2,3,0.5,0.25\n1,3")
    assert read_scores(tmp_path) == {1: [Score(1, 2, 3, 0.5, 0.25)]}
    (tmp_path / "clients.csv").write_text("round,client,examples,loss,accuracy\n1,2,x,0.5,0.25\n")
    with pytest.raises(RunError, match=r"clients\.csv: broken"):
        read_scores(tmp_path)


def test_it_is_shown_and_older_runs_are_read(tmp_path):
    file = io.StringIO()
    result = simulate(small(OUT, "federation.rounds=1"), runs=tmp_path, observers=(Console(rich.console.Console(
        file=file, width=120, color_system=None)),))  # fmt: skip
    row = result.rounds[0]
    lines = file.getvalue().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("1/1")]
    for value in (row.worst_client, row.median_client, row.best_client):
        assert f"{100 * value:.1f} %" in line
    (end,) = [line for line in lines if line.startswith("each client")]
    assert end.endswith(f"worst {100 * row.worst_client:.1f} %, median {100 * row.median_client:.1f} %, "
                        f"best {100 * row.best_client:.1f} %")  # fmt: skip
    curves = EventAccumulator(str(curves_of(result.folder)), size_guidance={"tensors": 0}).Reload()
    for tag, name in zip(("accuracy", "worst", "median", "best"), CLIENTS, strict=True):
        (point,) = curves.Tensors(f"clients/{tag}")
        assert (point.step, point.tensor_proto.float_val[0]) == (1, pytest.approx(getattr(row, name)))
    assert curves.Histograms("clients/accuracies")[0].histogram_value.num == 3

    metrics, summary = result.folder / "metrics.csv", result.folder / "summary.json"
    metrics.write_text("".join(",".join(line.split(",")[:13]) + "\n" for line in metrics.read_text().splitlines()))
    summary.write_text(json.dumps({k: v for k, v in json.loads(summary.read_text()).items() if k not in CLIENTS}))
    shutil.rmtree(result.folder / "checkpoints")  # newer ones know how long the files are
    table = compare([result.folder]).grouped()
    assert table.groups[0].runs[0].rounds[0].clients_accuracy is None


def test_who_holds_out_how_many_is_described():
    lines = head(describe(small("evaluation.held_out=0.5", "data.limit=7", "data.partition=linear")))
    assert "held out     0 to 2 (median 1) of each client's images, never trained on" in lines


def test_settings_that_cannot_be():
    for change, why in (
        ("evaluation.held_out=1", "less than 1"),
        ("evaluation.every=0", "greater than 0"),
        ("evaluation={held_out: 0.2, cohort: 4}", "4 of 3 clients cannot be asked"),
    ):
        with pytest.raises(ScenarioError, match=why):
            small(change)
