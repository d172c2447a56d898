"""What the server takes from a client's reply to a message to train or to evaluate, before anything is made of it."""

import math
from logging import getLogger
from typing import cast

from flwr.app import Message, MetricRecord

from splitfed.run.client_scores import Score
from splitfed.server.weights.grid import refusal
from splitfed.wire.messages import ARRAYS, METRICS

log = getLogger("splitfed")


def checked(reply: Message, round: int, client: int, examples: int) -> Message:
    """Return the reply, or an error in its place where it is not a trained front with the metrics of a client that
    holds `examples` images: a claim of more would outweigh the others in the average. Errors are logged."""
    return _told(reply, None if reply.has_error() else _problem(reply, examples), round, client)


def checked_score(
    reply: Message, round: int, client: int, examples: int, found: tuple[float, float] | None
) -> Score | None:
    """Return the score of a client that holds out `examples` images, or None, with a warning, where the reply has none
    that can be true. What the server itself `found`, mean loss and accuracy, is what the client must say."""
    problem = None if reply.has_error() else _score_problem(reply, examples, found)
    if _told(reply, problem, round, client).has_error():
        return None
    metrics = reply.content.metric_records[METRICS]
    return Score(round, client, examples, *(cast(float, metrics[name]) for name in ("eval-loss", "eval-accuracy")))


def _told(reply: Message, problem: str | None, round: int, client: int) -> Message:
    """Put an error in the reply's place where there is a problem; log errors."""
    if problem:
        reply = refusal(reply, problem)
    if reply.has_error():
        log.warning("round %d: client %d failed: %s", round, client, reply.error.reason)
    return reply


def _score_problem(reply: Message, examples: int, found: tuple[float, float] | None) -> str | None:
    metrics = reply.content.get(METRICS)
    if set(reply.content) != {METRICS} or not isinstance(metrics, MetricRecord):
        return f"it holds {sorted(reply.content)}, not metrics alone"
    if set(metrics) != {"num-examples", "eval-loss", "eval-accuracy"}:
        return f"its metrics are {sorted(metrics)}"
    if metrics["num-examples"] != examples:
        return f"it counts {metrics['num-examples']} examples, where {examples} were announced"
    loss, accuracy = metrics["eval-loss"], metrics["eval-accuracy"]
    if not (isinstance(loss, float) and math.isfinite(loss) and loss >= 0):
        return f"its loss is {loss}"
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1 and round(accuracy * examples) / examples == accuracy):
        return f"its accuracy is {accuracy}, which is no share of {examples} images"
    if found is not None and (loss, accuracy) != found:
        return f"it tells loss {loss} and accuracy {accuracy}, where the server found {found[0]} and {found[1]}"
    return None


def _problem(reply: Message, examples: int) -> str | None:
    metrics = reply.content.get(METRICS)
    if set(reply.content) != {ARRAYS, METRICS} or not isinstance(metrics, MetricRecord):
        return f"it holds {sorted(reply.content)}, not a front and its metrics"
    if set(metrics) != {"num-examples", "train-loss", "steps"}:
        return f"its metrics are {sorted(metrics)}"
    if metrics["num-examples"] != examples:
        return f"it counts {metrics['num-examples']} examples, where {examples} were announced"
    loss = metrics["train-loss"]
    return None if isinstance(loss, float) and math.isfinite(loss) else f"its loss is {loss}"
