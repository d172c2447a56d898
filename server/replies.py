"""What the server takes from a client's reply to a training message, before a strategy sees it."""

import math
from logging import getLogger

from flwr.app import Message, MetricRecord

from splitfed.wire_grid import refusal
from splitfed.wire_names import ARRAYS, METRICS

log = getLogger("splitfed")


def checked(reply: Message, round: int, client: int, examples: int) -> Message:
    """Return the reply, or an error in its place where it is not a trained front with the metrics of a client that
    holds `examples` images: a claim of more would outweigh the others in the average. Errors are logged."""
    if not reply.has_error() and (problem := _problem(reply, examples)):
        reply = refusal(reply, problem)
    if reply.has_error():
        log.warning("round %d: client %d failed: %s", round, client, reply.error.reason)
    return reply


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
