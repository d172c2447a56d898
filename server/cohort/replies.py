"""What the server takes from a client's reply, before anything is made of it: whatever it holds is checked against what
the server knows itself."""

from dataclasses import dataclass, replace
from logging import getLogger

from flwr.app import Message

from splitfed.errors import WireError
from splitfed.run.client_scores import Score
from splitfed.server.cohort.claims import Crossed
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.weights.grid import refusal
from splitfed.wire.messages import ARRAYS, METRICS, AlignMetrics, EvaluateMetrics, TrainMetrics, holds_only

log = getLogger("splitfed")


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told, or has told before a round: how many images it trains on, what `planned` steps these
    make, and what it weighs in averages; and whether its front is `frozen`, so that it has none to return."""

    examples: int
    planned: Crossed
    weight: int
    frozen: bool = False


def checked(
    reply: Message, round: int, client: int, told: Told, crossed: tuple[int, int] | None, loss: float | None,
    refusals: Refusals, ended: bool = True,
) -> Message:  # fmt: skip
    """Return the reply, or an error in its place where it is not a trained front with the metrics of a client that
    trained as it was `told` to, on what has `crossed`, with the `loss` that the server found; None where nothing does,
    or the client alone knows its loss. Its stream must have `ended`. In the reply that is taken the number of examples,
    by which strategies average, is what the server lets the client weigh. Errors are logged."""
    if not reply.has_error():
        try:
            holds_only(reply.content, *((METRICS,) if told.frozen else (ARRAYS, METRICS)))
            metrics = TrainMetrics.read(reply.content)
            _agreed(metrics.examples, told.examples)
            if metrics.steps != told.planned.steps:
                raise WireError(f"it counts {metrics.steps} mini-batches, where its images make {told.planned.steps}")
            if crossed is not None and crossed != told.planned:
                steps, images = crossed
                raise WireError(
                    f"{images} images in {steps} mini-batches have crossed, where its {told.examples} make "
                    f"{told.planned.images} in {told.planned.steps}"
                )
            _finished(ended)
            if loss is not None and metrics.loss != loss:
                raise WireError(f"it tells a loss of {metrics.loss}, where the server found {loss}")
            reply.content[METRICS] = replace(metrics, examples=told.weight, throughput=None, operations=None).write()
        except WireError as problem:
            reply = refusal(reply, str(problem))
    _log_error(reply, round, client)
    refusals.note(client, round, reply)
    return reply


def checked_score(
    reply: Message, round: int, client: int, examples: int, found: tuple[float, float] | None, refusals: Refusals,
    ended: bool = True,
) -> Score | None:  # fmt: skip
    """Return the score of a client that holds out `examples` images, or None, with a warning, where the reply has none
    that can be true. What the server itself `found`, mean loss and accuracy, is what the client must say; its stream
    must have `ended`."""
    if not reply.has_error():
        try:
            _finished(ended)
            holds_only(reply.content, METRICS)
            told = EvaluateMetrics.read(reply.content)
            _possible(told, examples, found)
            return Score(round, client, examples, told.loss, told.accuracy)
        except WireError as problem:
            reply = refusal(reply, str(problem))
    _log_error(reply, round, client)
    refusals.note(client, round, reply)
    return None


def checked_alignment(
    reply: Message, round: int, client: int, examples: int, both: bool, refusals: Refusals
) -> Message:  # fmt: skip
    """Return the reply, or an error in its place where it is not that of a client that has fitted its layers to
    `examples` images, with a decoder if `both` halves were wanted."""
    if not reply.has_error():
        try:
            holds_only(reply.content, *((ARRAYS, METRICS) if both else (METRICS,)))
            _agreed(AlignMetrics.read(reply.content).examples, examples)
        except WireError as problem:
            reply = refusal(reply, str(problem))
    refusals.note(client, round, reply)
    return reply


def _finished(ended: bool) -> None:
    # A client answers when the server has answered the end of its stream; one whose line broke says that instead.
    if not ended:
        raise WireError("it says that it is done, and its stream has not come to its end")


def _agreed(told: int, announced: int) -> None:
    if told != announced:
        raise WireError(f"it counts {told} examples, where {announced} were announced")


def _possible(told: EvaluateMetrics, examples: int, found: tuple[float, float] | None) -> None:
    _agreed(told.examples, examples)
    loss, accuracy = told.loss, told.accuracy
    if round(accuracy * examples) / examples != accuracy:
        raise WireError(f"its accuracy is {accuracy}, which is no share of {examples} images")
    if found is not None and (loss, accuracy) != found:
        raise WireError(
            f"it tells loss {loss} and accuracy {accuracy}, where the server found {found[0]} and {found[1]}"
        )


def _log_error(reply: Message, round: int, client: int) -> None:
    if reply.has_error():
        log.warning("round %d: client %d failed: %s", round, client, reply.error.reason)
