"""Clients that lie: what they change of an honest client's work, or of its answer, by the kind of lie.

A lie that is told in the work changes this process's client code, for the clients that lie alone.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message

from splitfed.clients.worker import Worker
from splitfed.compression.codecs import floats
from splitfed.data.stratify import count_held_out
from splitfed.split.cut import Cut
from splitfed.wire.messages import MOST_IMAGES

Answer = Callable[[Message, Context], Message]

HELD_OUT = 0.2
_CLAIMED = MOST_IMAGES - count_held_out(MOST_IMAGES, HELD_OUT)


def _put(kind: str, record: str, **values: object) -> Callable[[Message], None]:
    def lie(reply: Message) -> None:
        if reply.metadata.message_type == kind and not reply.has_error():
            for key, value in values.items():
                reply.content[record][key.replace("_", "-")] = value  # type: ignore[index]

    return lie


def _raw(arrays: int, value: float) -> Callable[[Message], None]:
    def lie(reply: Message) -> None:
        if reply.metadata.message_type == "train" and not reply.has_error():
            del reply.content["wire"]
            found = {f"x{number}": Array(np.full(3, value + number)) for number in range(arrays)}
            reply.content["arrays"] = ArrayRecord(found)

    return lie


def _claim(reply: Message) -> None:
    """As many images as there may be, of which the stream shows none."""
    held_out = MOST_IMAGES - _CLAIMED
    _put("query", "config", num_examples=_CLAIMED, held_out=held_out)(reply)
    _put("train", "metrics", num_examples=_CLAIMED, steps=-(-_CLAIMED // 16))(reply)
    _put("evaluate", "metrics", num_examples=held_out)(reply)


# Lies in an answer. An error is no lie, whatever its text is.
ANSWERS: dict[str, Callable[[Message], None]] = {
    "weights that are a number": _put("train", "wire", weights=2**62),
    "weights that are a list": _put("train", "wire", weights=[300]),
    "arrays of Flower's": _raw(1, float("nan")),
    "a thousand arrays": _raw(1000, 1.0),
    "loss": _put("train", "metrics", train_loss=1e308),
    "steps": _put("train", "metrics", steps=[1.5]),
    "examples": _put("train", "metrics", num_examples=10**9),
    "a claim": _claim,
    "a score": _put("evaluate", "metrics", eval_accuracy=0.123),
}
# Lies in the work.
WORKS = ("huge weights", "weights that are NaN", "activations", "garbage", "more mini-batches")
TEXT = "an error's text"
_TEXT = "\x1b[2J\x1b]0;gone\x07\r\nround 9: all is well " * 20_000


def lying(app: Answer, lies: Mapping[int, str]) -> dict[int, Answer]:
    """Return what the clients that lie answer with, by number, where `app` is an honest client's; in this process they
    lie in their work too."""
    unknown = set(lies.values()) - {*ANSWERS, *WORKS, TEXT}
    assert not unknown, unknown
    _spoil_work({kind: {client for client, lie in lies.items() if lie == kind} for kind in WORKS})

    def of(lie: str) -> Answer:
        def answer(message: Message, context: Context) -> Message:
            if lie == TEXT and message.metadata.message_type == "train":
                return Message(Error(1, _TEXT), reply_to=message)
            reply = app(message, context)
            ANSWERS.get(lie, lambda reply: None)(reply)
            return reply

        return answer

    return {client: of(lie) for client, lie in lies.items()}


def _spoil_work(who: Mapping[str, Collection[int]]) -> None:
    train, stream, pack_step = Worker.train, Worker.stream, Cut.pack_step
    floats.bounds_fit = lambda *_: True  # an honest client would not even send it

    def spoilt_train(self, client, *more, **named):
        honest = self.scenario
        if client in who["more mini-batches"]:
            twice = honest.federation.model_copy(update={"local_epochs": 2 * honest.federation.local_epochs})
            self.scenario = honest.model_copy(update={"federation": twice})
        try:
            done = train(self, client, *more, **named)
        finally:
            self.scenario = honest
        for kind, value in (("huge weights", 1e30), ("weights that are NaN", torch.nan)):
            if client in who[kind]:
                done = replace(done, weights={name: tensor + value for name, tensor in done.weights.items()})
        return done

    def spoilt_stream(self, invitation, client, *more):
        opened = stream(self, invitation, client, *more)
        if client in who["garbage"]:
            send = opened.send
            opened.send = lambda buffer: send(b"garbage" * 1000)
        return opened

    def spoilt_step(self, plan, smashed, targets, examples, key, place, visit=None):
        factor = 1e20 if place.client in who["activations"] else 1
        return pack_step(self, plan, smashed * factor, targets, examples, key, place, visit)

    Worker.train, Worker.stream, Cut.pack_step = spoilt_train, spoilt_stream, spoilt_step  # type: ignore[method-assign]
