"""The crossing of an image that the client does not answer itself: what it asks, and what it hears.

    client                                                  server
    blocks 1 to b -> plan -> reduce -> codec -> zstd  ==>  zstd -> codec -> restore -> blocks b + 1 on
    logits  <=========================================================================='

A frame up is `ask`, of what the last block of the front made, or `ask_early`, of what an earlier block `b` made;
`answer` comes down. No targets go up, and no gradient comes back. A reducer with layers of its own serves the cut
alone, where they were trained: from an earlier block all tokens go, or those that its class token attends to most.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splitfed.compression.codecs.floats import FloatCodec
from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.lossless import NoStage
from splitfed.compression.reducers.base import View, meta_number
from splitfed.compression.reducers.settings import DiscardTokensConfig, NoneConfig
from splitfed.errors import RunError, WireError
from splitfed.inference.rates import one_by_one
from splitfed.inference.run_model import Trunk
from splitfed.seeds import Key
from splitfed.split.bounds import check_bounds
from splitfed.split.cut import Cut, most_bytes
from splitfed.wire.frame import Frame, Packed, Place, look, pack, unpack
from splitfed.wire.header import Header, Scalar

if TYPE_CHECKING:
    from splitfed.scenario.compression import Compression

_ASK, _EARLY, _ANSWER = "ask", "ask_early", "answer"
_MADE = "answer/made"
MODEL = 16  # letters of the hash that names a front
MOST_KEPT = 1024  # images of a request of which some are marked as kept: 256 letters


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks: of request `number`, that the model goes on after `block` with `tokens` `[B, k, D]`, which
    the front named by `model` made. `kept` are the places of images that the model may learn from."""

    number: int
    block: int
    model: str
    tokens: Tensor
    kept: tuple[int, ...] = ()


class Asking:
    """Packs and unpacks requests and answers for images of a model that is cut; holds no state between calls, so both
    ends share it. `geometry` is that at the cut, for as many images as a request may hold. Raises RunError for a
    reducer that merges samples."""

    def __init__(self, compression: "Compression", trunk: Trunk, geometry: Geometry, device: torch.device) -> None:
        if not one_by_one(compression):
            raise RunError(
                f"compression.reducer: {compression.reducer.kind} merges samples, and an answer is for one image: name "
                "another with --set compression.reducer=..., for instance '{kind: discard_tokens, kept_tokens: 0.9}'"
            )
        plain = compression.once
        if plain.reducer.ragged:  # filled up with rows that are none, images of several lengths would be others
            geometry = replace(geometry, batch=1)
        early = plain.reducer if isinstance(plain.reducer, DiscardTokensConfig) else NoneConfig()
        self._at_cut = Cut(plain, geometry, device)
        self._early = Cut(plain.model_copy(update={"reducer": early}), geometry, device)
        self._trunk, self._geometry, self._device = trunk, geometry, device
        self._kinds: dict[str, Expected] = {_ASK: _up(self._at_cut), _EARLY: _up(self._early)}
        self.most_bytes = max(most_bytes(expected) for expected in self._kinds.values())

    def look(self, buffer: bytes) -> tuple[Header, str]:
        """Read the header of a request and which front made it, by its name, before any of its tensors. Raises
        WireError."""
        header = look(buffer, self._kinds, max_bytes=self.most_bytes)
        return header, _named(header.meta)

    def needs_attention(self, block: int) -> bool:
        """Whether a request that leaves after `block` is decided on by the attention of that block's class token."""
        return self._cut(block).reducer.needs_attention

    def _cut(self, block: int) -> Cut:
        return self._at_cut if block == self._trunk.cut else self._early

    @torch.no_grad()
    def pack(
        self, tokens: Tensor, block: int, key: Key, *, number: int = 0, model: str = "",
        attention: Callable[[], Tensor] | None = None, kept: Sequence[bool] = (),
    ) -> Packed:  # fmt: skip
        """Encode what block `block` made of images, `[B, n, D]`, as request `number` of whoever has the front named by
        `model`; `kept` tells which of them, `MOST_KEPT` at most, the model may learn from. Raises CodecError for what
        cannot be sent."""
        cut, place = self._cut(block), Place(0, 0, number)
        check_bounds("an activation", tokens, place)
        encoder = self._trunk.front.encoder if block == self._trunk.cut else torch.nn.Identity()
        view = View(tokens, self._geometry.prefix, attention or _blind, encoder)
        plan = cut.reducer.plan(view, key.at("plan"))
        tensors = {"smashed": plan.reduce(tokens).float()}
        tensors |= {f"side/{name}": tensor for name, tensor in plan.side.items()}
        packets = cut.encode(tensors, key.at("rounding"), f"request {number}")
        meta = {**plan.meta, "model": model[:MODEL]} | ({} if cut is self._at_cut else {"block": block})
        if any(kept):
            meta["kept"] = f"{sum(1 << row for row, one in enumerate(kept) if one):x}"
        return pack(_ASK if cut is self._at_cut else _EARLY, *place, packets, meta)

    def unpack(self, buffer: bytes) -> Asked:
        """Decode a request. Raises WireError for anything else, and Diverged for numbers that no front makes."""
        frame = unpack(buffer, self._kinds, device=self._device, max_bytes=self.most_bytes)
        model = _named(frame.meta)
        del frame.meta["model"]
        kept = _marked(frame.meta.pop("kept", "0"))
        cut, block = self._at_cut, self._trunk.cut
        if frame.kind == _EARLY:
            cut, block = self._early, meta_number(frame.meta, "block", 1, self._trunk.cut - 1)
            frame.meta.pop("block")
        tokens = self._restored(cut, frame, block)
        if kept and kept[-1] >= len(tokens):
            raise WireError(f"image {kept[-1]} of {len(tokens)} is kept")
        return Asked(frame.step, block, model, tokens, kept)

    @torch.no_grad()
    def _restored(self, cut: Cut, frame: Frame, block: int) -> Tensor:
        smashed = frame.tensors["smashed"]
        side = {name.split("/")[1]: tensor for name, tensor in frame.tensors.items() if name.startswith("side/")}
        lengths = cut.reducer.lengths(side)
        samples = len(smashed) if lengths is None else len(lengths)
        labels = torch.zeros(samples, dtype=torch.int64, device=self._device)
        cut.reducer.check(smashed, labels, side, frame.meta, self._geometry)
        check_bounds("smashed", smashed, f"request {frame.step}")
        decoder = self._trunk.back.decoder if block == self._trunk.cut else None
        return cut.reducer.restore(smashed, side, frame.meta, decoder)

    def answer(self, asked: Asked) -> Packed:
        """Go on with what was asked, and encode what comes of it in float32: logits `[B, C]`, or where a tail follows
        its input `[B, k, D]`. Raises CodecError for what cannot be sent."""
        return self.answers([asked])[0]

    @torch.no_grad()
    def answers(self, asked: Sequence[Asked]) -> list[Packed]:
        """Answer requests that left after one block with as many tokens an image, together."""
        tokens = asked[0].tokens if len(asked) == 1 else torch.cat([one.tokens for one in asked])
        made = self._trunk.go_on(asked[0].block, tokens, self._trunk.server)
        if not self._trunk.tail:
            made = self._trunk.end(made)
        parts = made.float().split([len(one.tokens) for one in asked])
        packets = [FloatCodec(torch.float32).encode(part.contiguous(), Key(0)) for part in parts]
        return [
            pack(_ANSWER, 0, 0, one.number, {_MADE: (packet, NoStage())})
            for one, packet in zip(asked, packets, strict=True)
        ]

    def expected_answers(self, images: int | tuple[int, int]) -> dict[str, Expected]:
        """Return what a frame that answers for so many images may be."""
        geometry = self._geometry
        expected = Expect.floats(images, geometry.classes)
        if self._trunk.tail:
            expected = Expect.floats(images, (1, geometry.tokens), geometry.width)
        return {_ANSWER: {_MADE: (expected,)}}

    def most_answer_bytes(self, images: int) -> int:
        """Return the bytes that a frame which answers for so many images takes at most."""
        return most_bytes(self.expected_answers(images)[_ANSWER])

    @torch.no_grad()
    def unpack_answer(self, buffer: bytes, number: int, images: int) -> Tensor:
        """Decode what answers request `number`, of so many images, and return their logits `[images, C]`. Raises
        WireError for anything else."""
        kinds = self.expected_answers(images)
        frame = unpack(buffer, kinds, max_bytes=most_bytes(kinds[_ANSWER]), device=self._device)
        if frame.step != number:
            raise WireError(f"an answer to request {frame.step}, where {number} was asked")
        made = frame.tensors[_MADE]
        return self._trunk.end(self._trunk.go_on(self._trunk.server, made)) if self._trunk.tail else made


def _named(meta: Mapping[str, Scalar]) -> str:
    model = meta.get("model")
    if not isinstance(model, str) or len(model) > MODEL:
        raise WireError("a request that does not name its front")
    return model


def _marked(said: Scalar) -> tuple[int, ...]:
    """Return which images are marked as kept. Raises WireError."""
    if not isinstance(said, str) or not re.fullmatch(f"[0-9a-f]{{1,{MOST_KEPT // 4}}}", said):
        raise WireError("a request that does not say which images are kept")
    marks = int(said, 16)
    return tuple(row for row in range(marks.bit_length()) if marks >> row & 1)


def _up(cut: Cut) -> Expected:
    return {name: bounds for name, bounds in cut.expected_up.items() if name != "targets"}


def _blind() -> Tensor:
    raise RuntimeError("a reducer that reads attention must set needs_attention")
