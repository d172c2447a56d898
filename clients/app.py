"""The ClientApp: one query that tells who a node is, and the training of one round."""

from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from splitfed.clients.worker import worker_for
from splitfed.wire_names import CONFIG, METRICS, WIRE

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer with the node's partition id and how many examples it holds."""
    client = int(context.node_config["partition-id"])
    worker = worker_for(str(context.run_config["scenario"]))
    answer: dict[str, Any] = {"partition-id": client, "num-examples": len(worker.data.partitions[client])}
    return Message(RecordDict({CONFIG: ConfigRecord(answer)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the front that came with the message and return its weights with the client's metrics."""
    client = int(context.node_config["partition-id"])
    worker = worker_for(str(context.run_config["scenario"]))
    config = message.content.config_records[CONFIG]
    round = int(config["server-round"])  # type: ignore[arg-type]
    weights, _ = worker.wire.unpack(bytes(message.content.config_records[WIRE]["weights"]))  # type: ignore[arg-type]
    states = Path(str(context.run_config["run"])) / "clients"
    trained = worker.train(client, round, weights, str(config["channel"]), states)
    packed = worker.wire.pack(trained.weights, worker.key.at("front_weights", "up", round, client), round, client)
    metrics: dict[str, Any] = {"num-examples": trained.examples, "train-loss": trained.loss, "steps": trained.steps}
    content = {WIRE: ConfigRecord({"weights": packed.buffer}), METRICS: MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]
