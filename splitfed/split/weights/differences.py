"""Weights as differences to what the other end has already, and what rounding took from them.

The difference to the last weights is small, so few bits go far. Whoever sends decodes its own frame, and so knows what
the other end has, bit for bit. What a codec took from one difference is added to the next (error feedback, Seide et
al. 2014; Karimireddy et al., arXiv 1901.09847): kept by hand on the way up, while on the way down it is in the
difference by itself, as that is measured from what the client has and not from what it should have.

An auxiliary net comes and goes while the front stays: where the other end has a front and not the net, the net is sent
whole beside the front's difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from splitfed.errors import NotFinite, WireError
from splitfed.seeds import Key
from splitfed.split.auxiliary import AUXILIARY
from splitfed.split.weights.wire import BASE, WeightWire
from splitfed.wire.frame import Frame, Packed

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Base:
    """Weights, float32 on the CPU, that both ends have since a round; since round 0 if each has loaded them itself."""

    round: int
    weights: Weights


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame, the weights that the other end makes of it and has from now on (`known`), and what they lack
    (`residual`; nothing for whole weights)."""

    packed: Packed
    known: Weights
    residual: Weights


def send(
    wire: WeightWire, weights: Mapping[str, Tensor], base: Base | None, key: Key, round: int, client: int,
    residual: Mapping[str, Tensor] | None = None,
) -> Sent:  # fmt: skip
    """Encode weights as their difference to `base`, and what the last difference lacked; whole where there is no base.

    Raises CodecError for numbers that cannot be sent.
    """
    if base is None:
        packed = wire.pack(weights, key, round, client)
        return Sent(packed, wire.unpack(packed.buffer)[0], {})
    wanted = {name: weights[name].detach().cpu().float() for name in wire.shapes}
    known = wanted.keys() & base.weights.keys()
    for name in known:
        wanted[name] = wanted[name] - base.weights[name]
        if residual and name in residual:
            wanted[name] += residual[name]
    packed = wire.pack(wanted, key, round, client, base.round, known)
    came, _ = wire.unpack(packed.buffer)
    missing = {name: wanted[name] - came[name] for name in wanted if name in known}
    return Sent(packed, restored(base.weights, came), missing)


def base_of(frame: Frame) -> int | None:
    """Return the round whose weights a frame's are measured from, 0 for those that both ends have loaded, None where
    they are whole. Raises WireError."""
    if not frame.meta:
        return None
    base = frame.meta.get(BASE)
    if len(frame.meta) > 1 or type(base) is not int or not 0 <= base <= frame.round:
        raise WireError(f"weights of round {frame.round} are measured from {str(frame.meta)[:60]}")
    return base


def restored(base: Weights, difference: Weights) -> Weights:
    """Return the weights that differ so from these; of which the base has none, those are whole. Raises NotFinite where
    they are too large for float32."""
    weights = {name: base[name] + came if name in base else came for name, came in difference.items()}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise NotFinite("the weights and their difference add up to more than float32 holds")
    return weights


def fits(wire: WeightWire, weights: Mapping[str, Tensor]) -> bool:
    """Tell whether these are the tensors that a wire carries, but for those of an auxiliary net: that may be missing,
    or be that of another phase."""
    told = {name: tensor.shape for name, tensor in weights.items()}
    return all(
        name.startswith(AUXILIARY) if name not in told or name not in wire.shapes else told[name] == wire.shapes[name]
        for name in told.keys() | wire.shapes.keys()
    )
