"""What the server takes from a client's reply, before anything is made of it: whatever it holds is checked against what
the server knows itself."""

from logging import getLogger

from flwr.app import Message

from splitfed.errors import WireError
from splitfed.run.client_scores import Score
from splitfed.server.weights.grid import refusal
from splitfed.wire.messages import ARRAYS, METRICS, AlignMetrics, EvaluateMetrics, TrainMetrics, holds_only

log = getLogger("splitfed")


def checked(reply: Message, round: int, client: int, examples: int) -> Message:
    """Return the reply, or an error in its place where it is not a trained front with the metrics of a client that
    holds `examples` images: a claim of more would outweigh the others in the average. Errors are logged."""
    if not reply.has_error():
        try:
            holds_only(reply.content, ARRAYS, METRICS)
            _agreed(TrainMetrics.read(reply.content).examples, examples)
        except WireError as problem:
            reply = refusal(reply, str(problem))
    _log_error(reply, round, client)
    return reply


def checked_score(
    reply: Message, round: int, client: int, examples: int, found: tuple[float, float] | None
) -> Score | None:
    """Return the score of a client that holds out `examples` images, or None, with a warning, where the reply has none
    that can be true. What the server itself `found`, mean loss and accuracy, is what the client must say."""
    if not reply.has_error():
        try:
            holds_only(reply.content, METRICS)
            told = EvaluateMetrics.read(reply.content)
            _possible(told, examples, found)
            return Score(round, client, examples, told.loss, told.accuracy)
        except WireError as problem:
            reply = refusal(reply, str(problem))
    _log_error(reply, round, client)
    return None


def check_alignment(reply: Message, examples: int, both: bool) -> None:
    """Raise WireError unless a reply, which is no error, is that of a client that has fitted its layers to `examples`
    images, with a decoder if `both` halves were wanted."""
    holds_only(reply.content, *((ARRAYS, METRICS) if both else (METRICS,)))
    _agreed(AlignMetrics.read(reply.content).examples, examples)


def _agreed(told: object, announced: int) -> None:
    if told != announced:
        raise WireError(f"it counts {told} examples, where {announced} were announced")


def _possible(told: EvaluateMetrics, examples: int, found: tuple[float, float] | None) -> None:
    _agreed(told.examples, examples)
    loss, accuracy = told.loss, told.accuracy
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1 and round(accuracy * examples) / examples == accuracy):
        raise WireError(f"its accuracy is {accuracy}, which is no share of {examples} images")
    if found is not None and (loss, accuracy) != found:
        raise WireError(
            f"it tells loss {loss} and accuracy {accuracy}, where the server found {found[0]} and {found[1]}"
        )


def _log_error(reply: Message, round: int, client: int) -> None:
    if reply.has_error():
        log.warning("round %d: client %d failed: %s", round, client, reply.error.reason)
