"""Answers for images: by a run's whole model, or by the first exit that is sure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from splitfed.data.batches import normaliser
from splitfed.errors import RunError
from splitfed.inference.deciding import Judged, Measure, Rule, confidence
from splitfed.inference.exits import Exits, heads, load
from splitfed.inference.pictures import Named, Picture, find, read
from splitfed.inference.run_model import RunModel
from splitfed.inference.way import Way


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of an image: the likeliest classes with their probabilities, the likeliest first, how sure it
    is (`confidence`, in [0, 1]), and after which block it answered (`exit`; None is the whole model). Of what could not
    be answered there is the `problem` alone."""

    image: str
    probabilities: dict[str, float]
    confidence: float | None = None
    exit: int | None = None
    problem: str | None = None

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
        self.rule = Rule(2.0 if confidence is None else confidence, measure, rise)
        asked = {
            "a confidence": confidence, "an accuracy": accuracy, "bytes an image": most_bytes,
            "operations an image": most_operations,
        }  # fmt: skip
        if len(named := [name for name, value in asked.items() if value is not None]) > 1:
            raise RunError(f"{' and '.join(named)} are asked for: one follows from the other, name one of them")
        if confidence is not None:
            self._exits = heads(self.model)
        elif named:
            self._exits, _, judged = load(self.model)
            self.rule = replace(self.rule, threshold=self._threshold(judged, accuracy, most_bytes, most_operations))
        elif rise is not None:
            raise RunError("a rise of confidence is asked for, and no confidence: exits take part where one is named")
        self._top, self._batch = min(top, len(self.model.classes)), batch
        self._normalise = normaliser(self.model.mean, self.model.std)

    def _threshold(
        self, judged: Judged, accuracy: float | None, most_bytes: float | None, most_operations: float | None
    ) -> float:
        if accuracy is not None:
            return judged.threshold(accuracy, self.rule)
        if most_bytes is not None:
            return judged.within_bytes(most_bytes, self.rule)
        assert most_operations is not None
        return judged.within_operations(most_operations, self.rule)

    def predict(self, images: str | Path | Sequence[Named]) -> list[Prediction]:
        """Answer for images, in order: files, folders of them, or what Pillow has opened. What cannot be decoded is
        answered with its problem. Raises DataError for a place where nothing is, and for a folder without images."""
        return list(self.stream(images))

    def stream(self, images: str | Path | Sequence[Named]) -> Iterator[Prediction]:
        """Answer as `predict` does, a batch at a time."""
        named = [images] if isinstance(images, str | Path) else list(images)
        places: list[Named] = []
        for one in named:
            places += find([one]) if isinstance(one, str | Path) else [one]
        size, white = self.model.scenario.model.image_size, self.model.scenario.data.white
        pictures = read(places, size, white, self._batch)
        while part := list(islice(pictures, self._batch)):
            yield from self._answers(part)

    def _answers(self, pictures: Sequence[Picture]) -> Iterator[Prediction]:
        good = [picture.pixels for picture in pictures if picture.pixels is not None]
        answers = iter(self._answer(torch.stack(good)) if good else ())
        for picture in pictures:
            if picture.pixels is None:
                yield Prediction(picture.name, {}, problem=picture.problem)
            else:
                likely, sure, exit = next(answers)
                yield Prediction(picture.name, likely, sure, exit)

    def _answer(self, pixels: Tensor) -> list[tuple[dict[str, float], float, int | None]]:
        images = self._normalise(pixels).to(self.model.device)
        probabilities, exits = self._walk(images)
        sure = confidence(probabilities, self.rule.measure).tolist()
        values, places = (found.tolist() for found in probabilities.topk(self._top, 1))
        names = self.model.classes
        likely = [
            {names[place]: value for place, value in zip(*row, strict=True)} for row in zip(places, values, strict=True)
        ]
        return list(zip(likely, sure, exits, strict=True))

    @torch.no_grad()
    def _walk(self, images: Tensor) -> tuple[Tensor, list[int | None]]:
        """Return the probabilities `[B, C]` of images `[B, 3, S, S]`, and after which block each was answered."""
        trunk, found = self.model.trunk, torch.zeros(len(images), len(self.model.classes), device=images.device)
        way = Way(self._exits, self.rule, len(images), images.device)
        tokens = trunk.begin(images)
        for number in range(1, len(trunk) + 1):
            tokens = trunk.block(number, tokens)
            if (sure := way.passes(number, tokens)) is not None:
                answered, probabilities = sure
                found[way.rows[answered]] = probabilities[answered]
                tokens = way.leave(answered, tokens, number)
                if not len(tokens):
                    return found, way.exits
            if number == trunk.cut:
                tokens = trunk.cross(tokens)
        found[way.rows] = trunk.end(tokens).float().softmax(1)
        return found, way.exits
