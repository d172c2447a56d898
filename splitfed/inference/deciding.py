"""Who answers: an exit that is sure, or what comes after it. Confidences are in [0, 1], and 1 is sure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from splitfed.errors import RunError, SplitfedError

Measure = Literal["probability", "margin", "entropy"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


def confidence(probabilities: Tensor, measure: Measure) -> Tensor:
    """Return how sure answers are, `[..., C]` to `[...]`: by the largest `probability`, its `margin` over the second,
    or by `entropy`, as 1 - H / ln C."""
    if measure == "probability" or probabilities.shape[-1] == 1:
        return probabilities.amax(-1)
    if measure == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return first - second
    entropy = torch.special.entr(probabilities).sum(-1)
    return (1 - entropy / math.log(probabilities.shape[-1])).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """When an image's way ends. It is answered by the first exit whose confidence, by this `measure`, is `threshold` at
    least: with 0 all are answered by the first, with more than 1 none by any.

    Where its confidence has risen by less than `rise` since the exit before, it is given up there and sent on at once
    (recursive exits, arXiv 2412.19587, whose own rule is not public); None is never.
    """

    threshold: float
    measure: Measure = "probability"
    rise: float | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise SplitfedError(f"a confidence of {self.threshold:g}: it is 0 or more, and 1 is sure")
        if self.rise is not None and not math.isfinite(self.rise):
            raise SplitfedError(f"a rise of {self.rise:g}: it is a number by which a confidence rises")

    @property
    def answers(self) -> bool:
        """Whether any exit can be sure enough."""
        return self.threshold <= 1

    def stops(self, now: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tell of images `[B]` with these confidences, and those at the exit before, which are answered here, and which
        are sent on from here; both bool `[B]`."""
        answered = now >= self.threshold
        if self.rise is None or before is None:
            return answered, torch.zeros_like(answered)
        return answered, ~answered & (now - before < self.rise)


@dataclass(frozen=True, slots=True)
class Routes:
    """Where the ways of N images ended: `answered` int64 `[N]` is the place of the exit among all, or their number
    where none answered; `left` that of the exit after which the image was sent on, the last one where it saw all."""

    answered: Tensor
    left: Tensor


def routes(confidences: Tensor, rule: Rule) -> Routes:
    """Follow images past exits whose confidences, `[E, N]`, are known."""
    exits, images = confidences.shape
    answered = torch.full((images,), exits, dtype=torch.int64)
    left = torch.full((images,), exits - 1, dtype=torch.int64)
    open_ = torch.ones(images, dtype=torch.bool)
    for place in range(exits):
        here, sent = rule.stops(confidences[place], confidences[place - 1] if place else None)
        answered[open_ & here], left[open_ & (here | sent)] = place, place
        open_ &= ~(here | sent)
    return Routes(answered, left)


def threshold_for(confidences: Tensor, right: Tensor, last_right: Tensor, accuracy: float, rule: Rule) -> float | None:
    """Return the lowest threshold with which so large a share of N images is answered rightly, or None where none is
    enough: `confidences` and `right` of the exits are `[E, N]`, `last_right` `[N]` is that of the whole model."""
    # Just above each confidence that occurs: between two of them nothing changes.
    above = torch.nextafter(confidences.flatten().float().unique(), torch.tensor(2.0))
    for threshold in _spread(torch.cat([torch.zeros(1), above])):
        found = routes(confidences, Rule(threshold, rule.measure, rule.rise))
        if float(chosen(right, last_right, found).float().mean()) >= accuracy:
            return threshold
    return None


def chosen(exits: Tensor, last: Tensor, found: Routes) -> Tensor:
    """Return for N images what answers them out of the exits' `[E, N]` and the whole model's `[N]`."""
    return torch.cat([exits, last[None]]).gather(0, found.answered[None])[0]


def threshold_within(confidences: Tensor, costs: Tensor, most: float, rule: Rule) -> float | None:
    """Return the highest threshold with which N images cost `most` on the mean, or None where none costs so little:
    `confidences` of the exits are `[E, N]`, `costs` those of an answer by each exit and by the whole model,
    `[E + 1, N]`."""
    above = torch.nextafter(confidences.flatten().float().unique(), torch.tensor(2.0))
    for threshold in reversed(_spread(torch.cat([torch.zeros(1), above]))):
        found = routes(confidences, Rule(threshold, rule.measure, rule.rise))
        if float(chosen(costs[:-1], costs[-1], found).double().mean()) <= most:
            return threshold
    return None


@dataclass(frozen=True, slots=True)
class Judged:
    """How exits do on the N images of the validation split: how sure each is, by each of `MEASURES`, `[M, E, N]`, which
    they answer rightly, bool `[E, N]`, and which the whole model does, bool `[N]`. An answer by each exit, and by the
    whole model, costs `bytes` int64 `[E + 1, K]` of each of the first K images, as they are sent after the front (K is
    0 where they cannot be sent one by one), and `operations` float64 `[E + 1]`. Who does not know costs has none."""

    confidences: Tensor
    right: Tensor
    whole: Tensor
    bytes: Tensor = field(default_factory=partial(torch.zeros, 1, 0, dtype=torch.int64))
    operations: Tensor = field(default_factory=partial(torch.zeros, 0, dtype=torch.float64))

    @classmethod
    def of(cls, answers: Tensor, whole: Tensor, labels: Tensor, bytes: Tensor, operations: Tensor) -> Self:
        """Judge probabilities `[E, N, C]`, and the classes `[N]` that the whole model names."""
        sure = torch.stack([confidence(answers.float(), measure) for measure in MEASURES])
        right, last = (answers.argmax(2) == labels).cpu(), (whole == labels).cpu()
        return cls(sure.cpu(), right, last, bytes, operations)

    def part(self, places: Sequence[int]) -> "Judged":
        """Return how the exits at some places do, by themselves."""
        exits, rows = list(places), [*places, len(self.right)]
        costs = self.operations[rows] if len(self.operations) else self.operations
        sent = self.bytes[rows] if len(self.bytes) > 1 else self.bytes
        return Judged(self.confidences[:, exits], self.right[exits], self.whole, sent, costs)

    def then(self, later: "Judged") -> "Judged":
        """Return how these exits do with others of the same model after them."""
        return Judged(
            torch.cat([self.confidences, later.confidences], 1), torch.cat([self.right, later.right]), self.whole,
            torch.cat([self.bytes[:-1], later.bytes]), torch.cat([self.operations[:-1], later.operations]),
        )  # fmt: skip

    def fits(self, exits: int) -> bool:
        """Tell whether this can be how so many exits do."""
        images = len(self.whole) if self.whole.ndim == 1 else -1
        sizes = {1 + exits, 1} if self.bytes.ndim == 2 and not self.bytes.shape[1] else {1 + exits}
        return (
            self.confidences.shape == (len(MEASURES), exits, images) and self.confidences.is_floating_point()
            and self.right.shape == (exits, images) and self.right.dtype == self.whole.dtype == torch.bool
            and self.bytes.ndim == 2 and len(self.bytes) in sizes and self.bytes.shape[1] <= images
            and self.operations.shape in ((0,), (1 + exits,))
        )  # fmt: skip

    def threshold(self, accuracy: float, rule: Rule) -> float:
        """Return the lowest threshold with which so large a share is answered rightly, by what a rule says otherwise.
        Raises RunError where none is enough."""
        found = threshold_for(self._sure(rule), self.right, self.whole, accuracy, rule)
        if found is None:
            best = float(self.whole.float().mean())
            raise RunError(
                f"an accuracy of {accuracy:g}: no threshold reaches it on the validation split, where the whole model "
                f"has {best:.1%}"
            )
        return found

    def within_bytes(self, most: float, rule: Rule) -> float:
        """Return the highest threshold with which an image costs so many bytes on the mean, by what a rule says
        otherwise. Raises RunError where none costs so little, and where nothing tells what is sent."""
        count = self.bytes.shape[1]
        if not count:
            raise RunError(
                "bytes an image: nothing tells what one takes, as where the run's reducer merges samples: name a "
                "confidence instead"
            )
        return self._within(self._sure(rule)[:, :count], self.bytes, most, rule, "bytes")

    def within_operations(self, most: float, rule: Rule) -> float:
        """Return the highest threshold with which an image takes so many operations on the mean, as `within_bytes`
        does."""
        sure = self._sure(rule)
        if not len(self.operations):
            raise RunError("operations an image: nothing tells what one takes: name a confidence instead")
        return self._within(sure, self.operations[:, None].expand(-1, sure.shape[1]), most, rule, "operations")

    def _sure(self, rule: Rule) -> Tensor:
        return self.confidences[MEASURES.index(rule.measure)]

    @staticmethod
    def _within(sure: Tensor, costs: Tensor, most: float, rule: Rule, what: str) -> float:
        found = threshold_within(sure, costs, most, rule)
        if found is None:
            least = float(costs[0].double().mean())
            raise RunError(
                f"{most:,.0f} {what} an image: no threshold takes so little: on the validation split an answer by the "
                f"first exit takes {least:,.0f}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Aim:
    """What is asked of exits: a `confidence`, or in its place an `accuracy` of the answers, or that an image takes no
    more than `most_bytes` or `most_operations` on the mean, from which the threshold follows; `measure` and `rise` are
    those of the rule. Where nothing is asked for, no exit answers. Raises RunError for what does not go together."""

    confidence: float | None = None
    accuracy: float | None = None
    most_bytes: float | None = None
    most_operations: float | None = None
    measure: Measure = "probability"
    rise: float | None = None

    def __post_init__(self) -> None:
        asked = {
            "a confidence": self.confidence, "an accuracy": self.accuracy, "bytes an image": self.most_bytes,
            "operations an image": self.most_operations,
        }  # fmt: skip
        named = [name for name, value in asked.items() if value is not None]
        if len(named) > 1:
            raise RunError(f"{' and '.join(named)} are asked for: one follows from the other, name one of them")
        if not named and self.rise is not None:
            raise RunError("a rise of confidence is asked for, and no confidence: exits take part where one is named")
        self.rule(None)

    @property
    def follows(self) -> bool:
        """Whether the threshold follows from what is known of the exits."""
        return not (self.accuracy is None and self.most_bytes is None and self.most_operations is None)

    @property
    def of_exits(self) -> bool:
        """Whether exits take part."""
        return self.confidence is not None or self.follows

    def rule(self, judged: Judged | None) -> Rule:
        """Return the rule that this comes to, of exits that do so. Raises RunError where they cannot do it."""
        plain = Rule(2.0 if self.confidence is None else self.confidence, self.measure, self.rise)
        if judged is None:
            return plain
        if self.accuracy is not None:
            return replace(plain, threshold=judged.threshold(self.accuracy, plain))
        if self.most_bytes is not None:
            return replace(plain, threshold=judged.within_bytes(self.most_bytes, plain))
        if self.most_operations is not None:
            return replace(plain, threshold=judged.within_operations(self.most_operations, plain))
        return plain


def _spread(values: Tensor, most: int = 512) -> list[float]:
    """Return some of ascending values, evenly among them, the first and the last with them."""
    if len(values) > most:
        values = values[torch.linspace(0, len(values) - 1, most).round().long()]
    return values.tolist()
