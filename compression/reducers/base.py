"""The contract of a reducer: the differentiable half of compression, which changes shapes inside the autograd graph.

A reducer looks at a batch once, without gradient, and makes a `Plan`. The plan is then applied to everything that it
concerns: activations (differentiably), targets, and through autograd the gradient that comes back. What a plan discards
never travels, and the gradient of what remains is small by itself. Turning tensors into bytes is a codec's work.

Settings are of the contract, and are read without torch: so nothing heavy is imported here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.config import Config
from splitfed.errors import WireError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor, nn

    from splitfed.compression.reducers.trained.layers import Alignment, Halves

Meta = Mapping[str, int | float | str]


class CutModel(Protocol):
    """What settings are told of the model: its name in timm, the blocks before the cut, the side of its images."""

    @property
    def name(self) -> str: ...

    @property
    def cut(self) -> int: ...

    @property
    def image_size(self) -> int: ...


def _identity() -> "nn.Module":
    from splitfed.compression.reducers.trained.layers import IDENTITY

    return IDENTITY


@dataclass(frozen=True)
class View:
    """What a reducer may look at when it decides: detached activations `[B, n, d]`, and on demand the attention that
    CLS pays to all tokens in the last block of the front, `[B, n]`, rows summing to 1; the first `prefix` tokens are
    class and register tokens. `encoder` is the client's half of a reducer with layers of its own, else the identity.
    Where the front has passed on only some tokens, these stood at `positions`, int64 `[B, n]`, ascending."""

    activations: "Tensor"
    prefix: int
    attention: "Callable[[], Tensor]"
    encoder: "nn.Module" = field(default_factory=_identity)
    positions: "Tensor | None" = None


@dataclass
class Plan(ABC):
    """A decision about one batch. `side` tensors (int64) and `meta` travel with it; the receiver's half reads them."""

    side: "dict[str, Tensor]" = field(default_factory=dict)
    meta: dict[str, int | float | str] = field(default_factory=dict)

    @abstractmethod
    def reduce(self, activations: "Tensor") -> "Tensor":
        """Turn activations `[B, n, d]` into the smashed tensor, differentiably."""

    def where(self) -> "Tensor | None":
        """Return where each row of the smashed samples belongs among `Reducer.places`, int64 `[B, k]`, no place
        twice; None where rows come whole and in order."""
        return None

    def travelling(self, positions: "Tensor") -> "Tensor":
        """Return the positions of the tokens that travel, int64 `[B, k]`, of those at `positions` `[B, n]` which the
        activations are. All of them, unless a method says otherwise."""
        return positions

    @abstractmethod
    def targets(self, labels: "Tensor", classes: int) -> "Tensor":
        """Turn labels `[B]` (int64) into what the smashed samples are trained on: `[T]` labels, or `[T, classes]`
        probabilities (float32) where samples were merged."""

    # For people, not for the wire: `splitfed explain` shows both. A method that discards or merges says so here.

    def kept(self, samples: int, tokens: int) -> "Tensor":
        """Return the share of each token that travels in its own place, float `[B, n]`, of a batch of B samples and n
        tokens: 0 for a token that is discarded. All of them, unless a method says otherwise."""
        import torch

        return torch.ones(samples, tokens)

    def groups(self, samples: int) -> "Tensor":
        """Return which smashed sample each of B samples becomes part of, int64 `[B]`: samples of one number are merged.
        A number each, unless a method says otherwise."""
        import torch

        return torch.arange(samples)


class Reducer(ABC):
    """One method of reduction; stateless, so one object serves any number of clients. Layers that it trains live in
    the model."""

    needs_attention: bool = False
    separable: bool = False
    """Whether smashed samples of several mini-batches may be mixed and restored together: each by its own rows of
    `smashed`, targets and side tensors, under the same meta. Where they may not, memory shuffles mini-batches whole."""
    side_places: bool = False  # whether `where` tells places; else marks of them travel beside
    ragged: bool = False
    """Whether samples keep different numbers of tokens. Then smashed has a row for each token, `[T, d]`, those of a
    sample one after the other, `lengths` tells whose they are, and `restore` fills up with rows of zeros, to which no
    token attends."""
    evaluates: bool = False
    """Whether it takes part where the model is only evaluated: what its gates close there does not travel either."""

    def places(self, geometry: Geometry) -> int | None:
        """Return among how many places the rows of a smashed sample lie, where its plan says at each visit which they
        are; None where rows come whole and in order."""
        return None

    def where(self, side: "Mapping[str, Tensor]") -> "Tensor | None":
        """Return the places of the rows, as the plan does, from `side`, which `check` has passed; None where rows come
        whole. Not asked where `side_places` says that they travel beside."""
        return None

    def halves(self, geometry: Geometry, key: Key) -> "Halves | None":
        """Return the reducer's own layers, new and drawn from `key`; None where it has none. There may be gates within
        the front among them (`Gates` in `splitfed.compression.reducers.trained.layers`)."""
        return None

    def budget(self, key: Key) -> float | None:
        """Return the share of tokens that the gates of its `halves` are to let through in a mini-batch of training,
        drawn from `key`; None where they have none, or go by their own."""
        return None

    def lengths(self, side: "Mapping[str, Tensor]") -> "Tensor | None":
        """Return how many tokens each sample has, int64 `[B]`, as `side` says; None where smashed has a row for each
        sample."""
        return None

    def stand_in(self, activations: "Tensor", prefix: int, key: Key, training: bool = True) -> "Tensor":
        """Return what stands for the front's activations before there is a model: these random ones, `[B, n, d]`, with
        as much closed as its gates would close, in training or in evaluation. Bytes are told by that in advance."""
        return activations

    def foreseen(self) -> "Reducer":
        """Return what tells bytes in advance: itself, or where it draws how much it sends, one that sends the mean of
        that."""
        return self

    @abstractmethod
    def plan(self, view: View, key: Key) -> Plan:
        """Decide, without gradient, what becomes of a batch; all randomness comes from `key`."""

    def check(
        self, smashed: "Tensor", targets: "Tensor", side: "Mapping[str, Tensor]", meta: Meta, geometry: Geometry
    ) -> None:
        """Refuse what is within `expected` and yet does not fit together; a peer sent all of it. A method with a server
        half says here what `restore` then relies on. Raises WireError."""
        if len(targets) != len(smashed):
            raise WireError(f"{len(targets)} targets for {len(smashed)} smashed samples")

    def restore(
        self, smashed: "Tensor", side: "Mapping[str, Tensor]", meta: Meta, decoder: "nn.Module | None" = None
    ) -> "Tensor":  # fmt: skip
        """Server half, differentiable: turn what arrived, and `check` has passed, into the input of the back. `decoder`
        is that of the back which is trained on it; where the reducer has no layers of its own, the identity or None."""
        return smashed if decoder is None else decoder(smashed)

    @abstractmethod
    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds of what may arrive for a batch of up to `geometry.batch` samples: `smashed`, `targets` and
        one `side/<name>` per side tensor. The largest size in each bound is what a full batch sends."""


class ReducerSettings(Config, ABC):
    """The section of a scenario that names a reducer by its `kind`, which a subclass narrows to one `Literal`."""

    kind: str
    single: ClassVar[bool] = False
    """Whether each smashed sample is of one image: then both ends can keep copies of it (`smashed.delta`)."""
    ragged: ClassVar[bool] = False
    """Whether what it builds is `ragged`."""
    noisy: ClassVar[bool] = False
    """Whether noise of a channel is in what it sends: no two visits of a sample are alike then, and no codec may round
    what crosses."""

    layered: ClassVar[bool] = False
    """Whether what it builds has an encoder and a decoder of its own, behind which the back is trained."""

    @abstractmethod
    def build(self) -> Reducer:
        """Return the reducer."""

    def problem(self, batch_size: int) -> str | None:
        """Tell why it does not go with mini-batches of this size, and the way out; or None."""
        return None

    def misfit(self, model: CutModel, geometry: Geometry) -> str | None:
        """Tell why it does not go with this model, whose sizes at the cut are these, and the way out; or None. Asked
        where the run's files are, not at the clients."""
        return None

    def load(self, halves: "Halves") -> None:
        """Give the reducer's layers the weights that the settings name, if any, once `misfit` has none to report. Asked
        at the server, where the run's files are."""

    def settled(self) -> Self:
        """Return the settings for answers after training: the same, but for what training alone draws."""
        return self

    def serves(self, trained: "ReducerSettings") -> bool:
        """Tell whether answers can go by it where the model was trained with another: the layers are the same, gates in
        the front among them."""
        return self == trained or not any(one.layered or one.ragged for one in (self, trained))

    def symbols(self, reduced: int) -> int | None:
        """Return the channel symbols in smashed tensors of so many bytes in float32; None where it sends none."""
        return None

    def alignment(self) -> "Alignment | None":
        """Return how each client fits the layers to its images before it first trains; None where none does."""
        return None


def meta_number(meta: Meta, name: str, low: int, high: int) -> int:
    """Return a whole number out of a peer's meta. Raises WireError where there is none from `low` to `high`."""
    value = meta.get(name)
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"a step whose {name} is {repr(value)[:32]}, where {low} to {high} is allowed")
    return value


def expected_targets(geometry: Geometry) -> tuple[Expect, ...]:
    """Bounds of targets where samples are not merged: one int64 label each."""
    return (Expect.integers((1, geometry.batch)),)
