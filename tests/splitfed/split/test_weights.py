"""The control plane: fronts as frames, hostile replies, and a grid that counts."""

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from helpers import small

from splitfed.engines.inline import InlineGrid, run_inline
from splitfed.errors import WireError
from splitfed.model.build import build, split
from splitfed.run.ledger import Ledger
from splitfed.scenario.compression import Compression
from splitfed.seeds import Key
from splitfed.server.weights.exchange import WholeWeights
from splitfed.server.weights.grid import CohortGrid, WireGrid
from splitfed.split.weights.wire import WeightWire

KEY = Key(0)


@pytest.fixture(scope="module")
def front():
    scenario = small()
    return split(build(scenario.model, 10, key=KEY), 1)[0]


def wire(front, **packing) -> WeightWire:
    return WeightWire(front.travelling(), Compression.model_validate({"front_weights": packing}))


def test_float32_weights_cross_exactly(front):
    one = wire(front)
    packed = one.pack(front.state_dict(), KEY, 1, 0)
    weights, frame = one.unpack(packed.buffer)
    assert all(torch.equal(weights[n], t) for n, t in front.state_dict().items())
    assert frame.sizes == packed.sizes
    assert packed.sizes["front_weights"].reduced == 4 * sum(p.numel() for p in front.parameters())
    assert one.sizes(packed)["front_weights"].raw == packed.sizes["front_weights"].reduced


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_few_bits_err_by_one_step_of_their_row(front, bits):
    one = wire(front, codec={"kind": "uniform", "bits": bits})
    weights, _ = one.unpack(one.pack(front.state_dict(), KEY, 1, 0).buffer)
    for name, tensor in front.state_dict().items():
        spread = tensor.max() - tensor.min()  # no row spreads more than its tensor
        assert (weights[name] - tensor).abs().max() <= spread / (2**bits - 1) * 1.001 + 1e-6, name


def test_a_convolution_has_one_scale_for_each_channel(front):
    """Rows of 4 pixels would each carry 8 bytes of scale for 4 bytes of codes."""
    one = wire(front, codec={"kind": "uniform", "bits": 8}, lossless="none")
    sizes = one.pack(front.state_dict(), KEY, 1, 0).sizes["front_weights"]
    assert sizes.coded < 0.45 * 4 * one.numbers["front_weights"]


def test_rounding_follows_the_key(front):
    one = wire(front, codec={"kind": "uniform", "bits": 4})
    buffers = [one.pack(front.state_dict(), KEY.at(n), 1, 0).buffer for n in (1, 1, 2)]
    assert buffers[0] == buffers[1] != buffers[2]


def test_weights_of_another_front_are_refused(front):
    other = split(build(small("model.args.embed_dim=32").model, 10, key=KEY), 1)[0]
    with pytest.raises(WireError):
        wire(front).unpack(wire(other).pack(other.state_dict(), KEY, 1, 0).buffer)
    with pytest.raises(WireError):
        wire(front).unpack(b"\x80\x04K\x01.")


def replying(answer) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message, context):
        return answer(message, context)

    return app


class Server:
    """Runs a function as a ServerApp would, over a wire grid."""

    def __init__(self, body):
        self.body = body

    def __call__(self, grid, context):
        self.body(grid)


def exchange(front, tmp_path, answer, clients=3):
    """Send the front to all clients through the wire grid; return the replies, the ledger and its grid."""
    found = {}

    def body(grid):
        from flwr.app import Array, ArrayRecord

        ledger = Ledger(tmp_path, 1)
        wired = WireGrid(grid, {"train": WholeWeights(wire(front))}, ledger, KEY)
        for node in grid.get_node_ids():
            wired.introduce(node, 9 - node)  # the other way round
        wired.begin(1)
        arrays = ArrayRecord({n: Array(t.numpy()) for n, t in front.state_dict().items()})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
        found["replies"] = wired.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
        found["ledger"] = ledger

    run_inline(Server(body), replying(answer), clients, {})  # type: ignore[arg-type]
    return found["replies"], found["ledger"]


def echo(message, context):
    """Send the weights back as they came, with metrics."""
    content = {"wire": message.content["wire"], "metrics": MetricRecord({"num-examples": 7})}
    return Message(RecordDict(content), reply_to=message)


def test_replies_come_sorted_by_client_in_float64(front, tmp_path):
    replies, ledger = exchange(front, tmp_path, echo)
    assert [reply.metadata.src_node_id for reply in replies] == [4, 3, 2]
    for reply in replies:
        arrays = reply.content["arrays"]
        assert all(arrays[n].numpy().dtype == "float64" for n in arrays)
        assert all((arrays[n].numpy() == t.numpy()).all() for n, t in front.state_dict().items())
    numbers = sum(p.numel() for p in front.parameters())
    assert ledger.open.select(direction="down", role="front_weights").raw == 3 * 4 * numbers


def test_control_bytes_are_those_of_flowers_messages(front, tmp_path):
    sent = []

    def counting(message, context):
        reply = echo(message, context)
        sent.extend(len(message_to_proto(m).SerializeToString()) for m in (message, reply))
        return reply

    _, ledger = exchange(front, tmp_path, counting)
    assert ledger.open.total.sent == sum(sent)
    assert ledger.open.select(role="metrics").sent > 0


@pytest.mark.parametrize("weights", [b"", b"\x80\x04K\x01.", bytes(100)])
def test_a_reply_that_is_no_front_becomes_an_error(weights, front, tmp_path):
    def hostile(message, context):
        content = {"wire": ConfigRecord({"weights": weights}), "metrics": MetricRecord({"num-examples": 7})}
        return Message(RecordDict(content), reply_to=message)

    replies, ledger = exchange(front, tmp_path, hostile, clients=1)
    assert replies[0].has_error()
    assert "refused" in replies[0].error.reason
    assert ledger.open.select(direction="up").sent > 0  # it crossed all the same


def test_an_error_reply_passes(front, tmp_path):
    replies, _ = exchange(front, tmp_path, lambda m, c: Message(Error(1, "no battery"), reply_to=m), clients=1)
    assert replies[0].error.reason == "no battery"


@pytest.mark.usefixtures("identity")
def test_a_strategy_takes_the_whole_cohort(front):
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), CohortGrid([7, 3, 5]))  # type: ignore[arg-type]
    assert sorted(m.metadata.dst_node_id for m in messages) == [3, 5, 7]


def test_a_node_keeps_its_own_state_and_nobody_elses_objects(tmp_path):
    seen = []

    def stateful(message, context):
        state = context.state.setdefault("count", ConfigRecord({"n": 0}))
        state["n"] += 1
        seen.append((context.node_config["partition-id"], state["n"]))
        message.content["config"]["a"] = 99
        return Message(RecordDict({"config": message.content["config"]}), reply_to=message)

    def body(grid: InlineGrid):
        content = RecordDict({"config": ConfigRecord({"a": 1})})
        for _ in range(2):
            ids = grid.push_messages([Message(content, node, "train") for node in grid.get_node_ids()])
            replies = []
            while len(replies) < len(ids):  # as they come
                replies += grid.pull_messages(ids)
            assert [r.content["config"]["a"] for r in replies] == [99, 99]
            assert list(grid.pull_messages(ids)) == []
        assert content["config"]["a"] == 1

    run_inline(Server(body), replying(stateful), 2, {})  # type: ignore[arg-type]
    assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (1, 2)]
