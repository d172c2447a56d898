"""Answers for images: by a run's whole model, or by the first exit that is sure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from splitfed.data.batches import normaliser
from splitfed.inference.deciding import Aim, Measure, confidence
from splitfed.inference.exits import Exits, heads, load
from splitfed.inference.pictures import Named, Picture, find, read
from splitfed.inference.run_model import RunModel
from splitfed.inference.way import Way


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of an image: the likeliest classes with their probabilities, the likeliest first, how sure it
    is (`confidence`, in [0, 1]), and after which block it answered (`exit`; None is the whole model). Where an exit was
    not sure enough, and answered as there was no help of a server, `alone` says why. Of what could not be answered
    there is the `problem` alone."""

    image: str
    probabilities: dict[str, float]
    confidence: float | None = None
    exit: int | None = None
    problem: str | None = None
    alone: str | None = None

    @property
    def label(self) -> str | None:
        """The likeliest class."""
        return next(iter(self.probabilities), None)


class Predictor:
    """Answers with the model of a run, as it is after a `round` (the newest one that has a checkpoint).

    With a `confidence` in [0, 1] the run's exits take part: the first whose confidence by `measure` is that large
    answers, and no later block is computed for such an image; `rise` is as in `Rule`. With an `accuracy` in its place
    it is the lowest with which so large a share of the validation split is answered rightly, and with `most_bytes` or
    `most_operations` the highest with which an image takes no more than that there on the mean: bytes of what is sent
    after the front and answered, operations of all blocks; `rule` tells it. `top` is
    how many classes are named, `batch` how many images are computed at once. Raises a SplitfedError as `RunModel.read`
    and `exits.load` do.
    """

    def __init__(
        self, run: str | Path, *, confidence: float | None = None, accuracy: float | None = None,
        most_bytes: float | None = None, most_operations: float | None = None,
        measure: Measure = "probability", rise: float | None = None, round: int | None = None, top: int = 1,
        batch: int = 64, device: str | None = None, overrides: list[str] | None = None,
    ) -> None:  # fmt: skip
        self.model = RunModel.read(run, round=round, device=device, overrides=overrides)
        self._exits: Exits | None = None
        aim, judged = Aim(confidence, accuracy, most_bytes, most_operations, measure, rise), None
        if aim.follows:
            self._exits, _, judged = load(self.model)
        elif aim.of_exits:
            self._exits = heads(self.model)
        self.rule = aim.rule(judged)
        self._top, self._batch = top, batch
        self._normalise = normaliser(self.model.mean, self.model.std)

    def predict(self, images: str | Path | Sequence[Named]) -> list[Prediction]:
        """Answer for images, in order: files, folders of them, or what Pillow has opened. What cannot be decoded is
        answered with its problem. Raises DataError for a place where nothing is, and for a folder without images."""
        return list(self.stream(images))

    def stream(self, images: str | Path | Sequence[Named]) -> Iterator[Prediction]:
        """Answer as `predict` does, a batch at a time."""
        size, white = self.model.scenario.model.image_size, self.model.scenario.data.white
        for pictures in batched(images, size, white, self._batch):
            good = [picture.pixels for picture in pictures if picture.pixels is not None]
            answered = self._answer(torch.stack(good)) if good else NOTHING
            yield from told(pictures, answered, self.model.classes, self._top, self.rule.measure)

    def _answer(self, pixels: Tensor) -> "Answered":
        images = self._normalise(pixels).to(self.model.device)
        probabilities, exits = self._walk(images)
        return Answered(probabilities, exits, [None] * len(exits), [None] * len(exits))

    @torch.no_grad()
    def _walk(self, images: Tensor) -> tuple[Tensor, list[int | None]]:
        """Return the probabilities `[B, C]` of images `[B, 3, S, S]`, and after which block each was answered."""
        trunk, found = self.model.trunk, torch.zeros(len(images), len(self.model.classes), device=images.device)
        way = Way(self._exits, self.rule, len(images), images.device)
        tokens = trunk.begin(images)
        for number in range(1, len(trunk) + 1):
            tokens = trunk.block(number, tokens)
            if (sure := way.passes(number, tokens)) is not None:
                answered, said = sure
                found[way.rows[answered]] = said.softmax(-1)[answered]
                tokens = way.leave(answered, tokens, number)
                if not len(tokens):
                    return found, way.exits
            if number == trunk.cut:
                tokens = trunk.cross(tokens)
        found[way.rows] = trunk.end(tokens).float().softmax(1)
        return found, way.exits


@dataclass(frozen=True, slots=True)
class Answered:
    """What was found for B images: probabilities `[B, C]`, and for each the block after which it was answered, why no
    server had a part in that, and why there is no answer; None where it is not so."""

    probabilities: Tensor
    exits: list[int | None]
    alone: list[str | None]
    problems: list[str | None]


NOTHING = Answered(torch.zeros(0, 1), [], [], [])


def batched(
    images: str | Path | Sequence[Named], size: int, white: float | None, batch: int
) -> Iterator[list[Picture]]:  # fmt: skip
    """Decode what is named, in order, so many at once. Raises DataError for a place where nothing is, and for a folder
    without images."""
    named = [images] if isinstance(images, str | Path) else list(images)
    places: list[Named] = []
    for one in named:
        places += find([one]) if isinstance(one, str | Path) else [one]
    pictures = read(places, size, white, batch)
    while part := list(islice(pictures, batch)):
        yield part


def told(
    pictures: Sequence[Picture], answered: Answered, classes: Sequence[str], top: int, measure: Measure
) -> Iterator[Prediction]:
    """Say what was found for those of some pictures that could be decoded, and of the others what is wrong."""
    sure = confidence(answered.probabilities, measure).tolist()
    values, places = (
        (found.tolist() for found in answered.probabilities.topk(min(top, len(classes)), 1)) if len(sure) else ([], [])
    )
    row = 0
    for picture in pictures:
        if picture.pixels is None:
            yield Prediction(picture.name, {}, problem=picture.problem)
            continue
        if answered.problems[row] is None:
            likely = {classes[place]: value for place, value in zip(places[row], values[row], strict=True)}
            yield Prediction(picture.name, likely, sure[row], answered.exits[row], alone=answered.alone[row])
        else:
            yield Prediction(picture.name, {}, problem=answered.problems[row])
        row += 1
