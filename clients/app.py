"""The ClientApp: who a node is and whether it can take part, a round's training and its evaluation, and the end of a
run."""

from contextlib import AbstractContextManager
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from splitfed.clients.connect import probe
from splitfed.clients.deployment.memory import check_memory
from splitfed.clients.evaluate import evaluate_held_out
from splitfed.clients.settings import Settings
from splitfed.clients.state import ClientState
from splitfed.clients.weights import RoundWeights, same_round
from splitfed.clients.worker import Worker
from splitfed.clients.worker_pool import leased
from splitfed.data.sources.fingerprint import take
from splitfed.errors import Lacking, RunError, SplitfedError, Unreached, WireError, telling_missing
from splitfed.scenario.engine import Deployment
from splitfed.wire.messages import (
    CONFIG,
    LACKING,
    LOST,
    METRICS,
    UNREACHED,
    VANISHED,
    WIRE,
    AlignMetrics,
    AlignOrder,
    EvaluateMetrics,
    Identity,
    Order,
    Question,
    TrainMetrics,
    Weights,
    asked,
    holds_only,
)

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer who this node is and how many examples it trains on and holds out, or the problem for which it cannot take
    part."""
    settings = Settings.read(context.node_config)
    try:
        with telling_missing():
            identity = _prepare(Question.read(asked(message)), context, settings)
    except SplitfedError as error:
        identity = Identity(settings.partition, problem=" ".join(str(error).split()))
    return Message(RecordDict({CONFIG: identity.write()}), reply_to=message)


def _prepare(question: Question, context: Context, settings: Settings) -> Identity:
    """Make ready what the first round needs, and return how many examples there are, and how many more are held out
    where any are to be."""
    with leased(_scenario(context), settings, question.classes) as worker:
        clients = worker.scenario.federation.clients
        if settings.partition >= clients:
            raise RunError(f"this is client {settings.partition}, where the run has clients 0 to {clients - 1}")
        settings.check_profile(worker.scenario)
        states = settings.states_of(_run(context))
        if settings.data is not None:
            state = ClientState(states, settings.partition)
            state.save_classes(question.classes)
            state.hold_to(take(worker.holding.images.source, None, question.classes))
        if question.channel:
            probe(question.channel, settings.reach(worker.scenario.engine))
        client, holding = settings.partition, worker.holding
        held_out = len(holding.held_out(client)) if worker.scenario.evaluation.held_out else None
        # In a simulation the server has all images, and weighs them itself.
        told = isinstance(worker.scenario.engine, Deployment)
        if told:
            check_memory(worker, settings, len(holding.rows(client)))
        weight = holding.stored_bytes(client) if told else None
        return Identity(
            client, len(holding.rows(client)), held_out, images_bytes=weight, profile=settings.profile if told else None
        )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the front that came with the message and return its weights with the client's metrics, the metrics alone
    where it is frozen; an error where the client has to vanish, or lacks what the weights build on."""
    holds_only(asked(message), CONFIG, WIRE)
    settings, order = Settings.read(context.node_config), Order.read(asked(message))
    sent = Weights.read(asked(message))
    client, round, states = settings.partition, order.round, settings.states_of(_run(context))
    with _worker(context, settings, states) as worker:
        phase = worker.scenario.phase(round)
        terms = worker.terms(client, order.point)
        if (order.stored is not None) != worker.scenario.remembers(round):
            raise WireError("the server's order says otherwise than the scenario whether what is sent is kept")
        wires = worker.wires(round, terms)
        phases = worker.scenario.phase
        exchange = RoundWeights(wires, worker.state(states, client), round, client, phases, order.trained)
        try:
            weights, frozen = exchange.down(sent)
            copies = worker.copies(states, client, round, order.trained)
        except Lacking as lacking:
            return Message(Error(LACKING, str(lacking)), reply_to=message)
        worker.part.load_frozen(frozen)
        reach = settings.reach(worker.scenario.engine)
        try:
            trained = worker.train(
                client, round, weights, order.invitation, reach, states, order.proximal, order.vanishes_after,
                order.trained, order.stored, copies, terms,
            )  # fmt: skip
        except Lacking as lost:
            return Message(Error(LOST, str(lost)), reply_to=message)
        except Unreached as away:
            return Message(Error(UNREACHED, str(away)), reply_to=message)
        if trained is None:
            return Message(Error(VANISHED, "it has vanished"), reply_to=message)
        metrics = TrainMetrics(
            trained.examples, trained.loss, trained.steps, trained.throughput, trained.operations
        ).write()  # fmt: skip
        if phase.frozen:
            return _reply(message, {METRICS: metrics})
        packed = exchange.up(trained.weights, worker.key.at("front_weights", "up", round, client))
    return _reply(message, {WIRE: Weights(packed.buffer).write(), METRICS: metrics})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Try the front that came with the message on the images that this client holds out, and return what came of it."""
    holds_only(asked(message), CONFIG, WIRE)
    settings, order = Settings.read(context.node_config), Order.read(asked(message))
    sent = Weights.read(asked(message))
    client, round, states = settings.partition, order.round, settings.states_of(_run(context))
    with _worker(context, settings, states) as worker:
        exchange = RoundWeights(
            worker.wires(), worker.state(states, client), round, client, worker.scenario.phase
        )  # fmt: skip
        try:
            weights, frozen = exchange.to_evaluate(sent)
        except Lacking as lacking:
            return Message(Error(LACKING, str(lacking)), reply_to=message)
        worker.part.load_frozen(frozen)
        reach = settings.reach(worker.scenario.engine)
        try:
            found = evaluate_held_out(worker, client, round, weights, order.invitation, reach, states)
        except Unreached as away:
            return Message(Error(UNREACHED, str(away)), reply_to=message)
    loss, accuracy, examples = found
    return _reply(message, {METRICS: EvaluateMetrics(examples, loss, accuracy).write()})


@app.query("refused")
def refused(message: Message, context: Context) -> Message:
    """Hear that the server does not take this client, for now: whoever runs this app sees the message pass."""
    holds_only(asked(message), CONFIG)
    return _reply(message, {})


@app.train("align")
def align(message: Message, context: Context) -> Message:
    """Fit the reducer's layers that came with the message to this client's images, keep the encoder, and return the
    decoder if it is wanted."""
    holds_only(asked(message), CONFIG, WIRE)
    settings, order = Settings.read(context.node_config), AlignOrder.read(asked(message))
    sent = Weights.read(asked(message))
    client, round, states = settings.partition, order.round, settings.states_of(_run(context))
    with _worker(context, settings, states) as worker:
        if worker.fitting is None:
            raise WireError(f"the reducer {worker.scenario.compression.reducer.kind} has no layers to fit")
        down, up = worker.alignment_wires
        weights, frame = down.unpack(sent.weights)
        same_round(frame.round, round)
        decoder, examples = worker.align(client, round, weights, order.both, states)
        records: dict[str, ConfigRecord | MetricRecord] = {METRICS: AlignMetrics(examples).write()}
        if order.both:
            packed = up.pack(decoder, worker.key.at("parts", "up", round, client), round, client)
            records[WIRE] = Weights(packed.buffer).write()
    return _reply(message, records)


@app.query("done")
def done(message: Message, context: Context) -> Message:
    """Hear that the server needs nothing more of this client, though the run goes on: whoever runs this app sees the
    message pass."""
    holds_only(asked(message))
    return _reply(message, {})


@app.query("goodbye")
def goodbye(message: Message, context: Context) -> Message:
    """Hear that the run is over: whoever runs this app sees the message pass."""
    holds_only(asked(message))
    return _reply(message, {})


def _reply(message: Message, records: dict[str, ConfigRecord | MetricRecord]) -> Message:
    return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]


def _worker(context: Context, settings: Settings, states: Path) -> AbstractContextManager[Worker]:
    told = ClientState(states, settings.partition).classes() if settings.data is not None else ()
    return leased(_scenario(context), settings, told)


def _scenario(context: Context) -> str:
    return _configured(context, "scenario")


def _run(context: Context) -> str:
    return _configured(context, "run")


def _configured(context: Context, key: str) -> str:
    value = context.run_config.get(key)
    if not isinstance(value, str):
        raise WireError(f"the run has no '{key}' in its configuration: is it one of splitfed?")
    return value
