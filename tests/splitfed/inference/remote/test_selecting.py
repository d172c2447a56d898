"""Which images are kept: against the plain formulas, by chance, and what cannot be said."""

import math

import pytest
import torch
from torch import Tensor

from splitfed.config import read_option
from splitfed.errors import SplitfedError
from splitfed.inference.remote.selecting import Select, Selector
from splitfed.seeds import Key


def selector(said: object) -> Selector:
    return Selector(read_option("--select", said, Select), Key(0))


def probabilities(images: int = 400, classes: int = 7) -> Tensor:
    """From quite sure to quite at a loss."""
    numbers = Key(1).generator()
    sharp = torch.logspace(-1, 1.5, images)[:, None]
    return (sharp * torch.randn(images, classes, generator=numbers)).softmax(1)


def plain(said: Tensor, high: float, low: float, most: float | None) -> list[bool]:
    """The rules one by one, in plain Python."""
    found: list[bool] = []
    mean: list[float] | None = None
    for row in said.tolist():
        entropy = -sum(p * math.log(p) for p in row if p > 0)
        keep = low * math.log(len(row)) < entropy < high * math.log(len(row))
        if keep and most is not None:
            if mean is not None:
                product = sum(a * b for a, b in zip(row, mean, strict=True))
                cosine = product / math.dist(row, [0] * len(row)) / math.dist(mean, [0] * len(row))
                keep = abs(cosine) < most
            if keep:
                mean = row if mean is None else [0.9 * a + 0.1 * b for a, b in zip(mean, row, strict=True)]
        found.append(keep)
    return found


@pytest.mark.parametrize(("high", "low", "most"), [(0.4, 0.02, None), (0.9, 0.3, None), (0.7, 0.01, 0.6)])
@pytest.mark.parametrize("batch", [1, 64])
def test_who_is_sure_or_at_a_loss_or_says_it_again_is_not_kept(
    high: float, low: float, most: float | None, batch: int
) -> None:
    said, expected = probabilities(), plain(probabilities(), high, low, most)
    keep = selector({"kind": "entropy", "high": high, "low": low, "redundant": most})
    assert torch.cat([keep(part) for part in said.split(batch)]).tolist() == expected
    assert (keep.seen, keep.kept) == (len(said), sum(expected))
    assert 0 < keep.kept < len(said)


def test_the_bounds_themselves_are_outside() -> None:
    """An even distribution has a share of 1, a certain one of 0."""
    said = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [float("nan")] * 4])
    assert selector("{kind: entropy, high: 1.0, low: 0}")(said).tolist() == [False, False, True, False]


def test_chance_does_not_look_at_what_is_said_and_is_the_same_in_any_batches() -> None:
    said = probabilities()
    keep, again = selector("{kind: random, share: 0.3}"), selector("{kind: random, share: 0.3}")
    found = keep(said)
    assert torch.equal(torch.cat([again(part) for part in said.flip(0).split(7)]), found)
    assert abs(int(found.sum()) - 0.3 * len(said)) < 4 * math.sqrt(0.3 * 0.7 * len(said))
    assert bool(selector("{kind: random, share: 1}")(said).all())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("entropie", "--select: unknown kind 'entropie', known: 'entropy', 'random'"),
        ("{kind: entropy, high: 0.02, low: 0.1}", "--select: entropy: low: is 0.1, and nothing lies between it"),
        ("{kind: random}", "--select: random.share: Field required"),
        ("{kind: entropy, hihg: 1}", "--select: entropy.hihg: unknown key"),
        ("{kind: ", "--select: is no YAML"),
        ("[1]", "--select: write a kind by its name"),
    ],
)
def test_what_cannot_be_said_is_told_in_a_line(said: str, why: str) -> None:
    with pytest.raises(SplitfedError, match=why) as error:
        read_option("--select", said, Select)
    assert "\n" not in str(error.value)
