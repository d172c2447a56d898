"""What a receiver is ready to accept: the bounds that every tensor of a frame is checked against."""

from collections.abc import Mapping
from dataclasses import dataclass

Range = tuple[int, int]

# What honest training never meets, by magnitude: whatever is beyond is refused, and so is its sender.
MOST_NUMBER = 1e6  # an activation, a number of a gradient at a cut, the norm of a back's gradient, a mean loss
MOST_TARGET = 2.0  # probabilities are 1 at most; a lossy codec may add to that
MOST_WEIGHT = 1e3  # or twice the largest that was sent, if that is more


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes at one cut: samples `batch` (at most), `tokens` n, features `width` d, `prefix` tokens, `classes`, and
    the `blocks` before it."""

    batch: int
    tokens: int
    width: int
    prefix: int
    classes: int
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class Expect:
    """Bounds of one tensor: allowed dtypes (torch names, `"float32"`), and an inclusive range for each dimension."""

    dtypes: frozenset[str]
    dims: tuple[Range, ...]

    def allows(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a tensor of this dtype and shape is within bounds."""
        return (
            dtype in self.dtypes
            and len(shape) == len(self.dims)
            and all(low <= size <= high for size, (low, high) in zip(shape, self.dims, strict=True))
        )

    @classmethod
    def floats(cls, *dims: int | Range) -> "Expect":
        """Expect float32; a plain number is an exact size."""
        return cls(frozenset({"float32"}), tuple(d if isinstance(d, tuple) else (d, d) for d in dims))

    @classmethod
    def integers(cls, *dims: int | Range) -> "Expect":
        """Expect int64; a plain number is an exact size."""
        return cls(frozenset({"int64"}), tuple(d if isinstance(d, tuple) else (d, d) for d in dims))

    def up_to(self, most: "Expect") -> "Expect":
        """Return the bounds of what lies between these and those of `most`, which has as many dimensions."""
        dims = tuple((low, high) for (low, _), (_, high) in zip(self.dims, most.dims, strict=True))
        return Expect(self.dtypes, dims)


# By tensor name (`"smashed"`, `"side/indices"`: the role is what stands before the slash); any of the alternatives
# will do. Every name is required, and no other is accepted.
Expected = Mapping[str, tuple[Expect, ...]]


def most_weight(sent: float) -> float:
    """Return how large a weight may be that training made of some of which the largest was `sent`."""
    return max(MOST_WEIGHT, 2 * sent)
