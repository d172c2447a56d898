"""A reducer behind a front that has passed on only some tokens of each sample (`model.adaptive`).

The method sees the k tokens that are left, and works on them as on a shorter sequence. Beside what it sends, as
`side/positions`, goes where in the whole sequence of n tokens those stood that travel: in whole bits, of B samples
1 + B k ceil(log2 n) / 8 bytes.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Meta, Plan, Reducer, View, meta_number
from splitfed.errors import WireError
from splitfed.seeds import Key

_POSITIONS, _LEFT = "positions", "left"


class LeftTokens(Reducer):
    """Another `method` on what is left of `tokens` tokens: at least `least` patch tokens, and `first` where nothing has
    been learned."""

    def __init__(self, method: Reducer, tokens: int, least: int, first: int) -> None:
        self._method, self._tokens, self._least, self._first = method, tokens, least, first
        self.needs_attention, self.separable = method.needs_attention, method.separable

    def halves(self, geometry: Geometry, key: Key):
        """Return the method's own layers."""
        return self._method.halves(geometry, key)

    def stand_in(self, activations: Tensor, prefix: int, key: Key, training: bool = True) -> Tensor:
        """Return as many tokens as are left at first; in evaluation all are."""
        made = self._method.stand_in(activations, prefix, key, training)
        return made[:, : prefix + self._first] if training else made

    def foreseen(self) -> "LeftTokens":
        """Return the same behind what tells the method's bytes in advance."""
        return LeftTokens(self._method.foreseen(), self._tokens, self._least, self._first)

    def plan(self, view: View, key: Key) -> Plan:
        """Let the method decide on what is left, and say where it stood."""
        plan, (samples, tokens, _) = self._method.plan(view, key), view.activations.shape
        positions = view.positions
        if positions is None:  # all are here, or it is not the model that has made them
            even = torch.linspace(0, self._tokens - 1, tokens, dtype=torch.float64, device=view.activations.device)
            positions = even.round().long().expand(samples, -1)
        plan.side = {**plan.side, _POSITIONS: plan.travelling(positions)}
        plan.meta = {**plan.meta, _LEFT: tokens}
        return plan

    def check(
        self, smashed: Tensor, targets: Tensor, side: Mapping[str, Tensor], meta: Meta, geometry: Geometry
    ) -> None:
        """Refuse another number of tokens than the frame itself says, positions that no tokens can have, and what the
        method refuses."""
        left = meta_number(meta, _LEFT, geometry.prefix + self._least, geometry.tokens)
        came = {"smashed": smashed, **{f"side/{name}": tensor for name, tensor in side.items()}}
        for name, choices in self._of(geometry, left).items():
            if name in came and not any(one.allows(_dtype(came[name]), tuple(came[name].shape)) for one in choices):
                raise WireError(f"{name} of shape {tuple(came[name].shape)}, where {left} tokens were left")
        positions = side[_POSITIONS]
        if len(positions) != len(targets):
            raise WireError(f"positions of {len(positions)} samples, where there are {len(targets)}")
        low, high = (int(bound) for bound in positions.aminmax())
        if low < 0 or high >= geometry.tokens or bool((positions.diff(dim=1) < 1).any()):
            raise WireError(f"positions that do not ascend within 0 to {geometry.tokens - 1}")
        self._method.check(smashed, targets, side, meta, replace(geometry, tokens=left))

    def restore(
        self, smashed: Tensor, side: Mapping[str, Tensor], meta: Meta, decoder: nn.Module | None = None
    ) -> Tensor:  # fmt: skip
        """Restore as the method does: the back takes any number of tokens."""
        return self._method.restore(smashed, side, meta, decoder)

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: those of the method for as few tokens as may be left, up to those for all."""
        least, most = self._of(geometry, geometry.prefix + self._least), self._of(geometry, geometry.tokens)
        return {name: tuple(map(Expect.up_to, least[name], most[name])) for name in most}

    def _of(self, geometry: Geometry, tokens: int) -> Expected:
        positions = Expect.integers((1, geometry.batch), (1, tokens))  # a method may discard some
        return {**self._method.expected(replace(geometry, tokens=tokens)), f"side/{_POSITIONS}": (positions,)}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
