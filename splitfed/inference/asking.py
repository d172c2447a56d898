"""The crossing of an image that the client does not answer itself: what it asks, and what it hears.

    client                                                  server
    blocks 1 to b -> plan -> reduce -> codec -> zstd  ==>  zstd -> codec -> restore -> blocks b + 1 on
    logits  <=========================================================================='

A frame up is `ask`, of what the last block of the front made, or `ask_early`, of what an earlier block `b` made;
`answer` comes down. No targets go up, and no gradient comes back. A reducer with layers of its own serves the cut
alone, where they were trained: from an earlier block all tokens go, or those that its class token attends to most.

Exits of the server answer where a request's meta say how sure they must be: `sure`, from 0 to 1, with a `measure`
unless that is the probability, and a `rise` where one is asked for. For that `ask_rising` has beside what `ask` has how
sure the last exit of the front was, `confidence` float32 `[B]`. An answer's meta have, for each block whose exit
answered some of the images, `exit_<block>`: which ones, as bits of a hexadecimal number, the first image the lowest.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from splitfed.inference.deciding import MEASURES, Rule
from splitfed.inference.rates import one_by_one
from splitfed.inference.run_model import Trunk
from splitfed.inference.way import Way
from splitfed.model.exits.heads import Exits
from splitfed.seeds import Key
from splitfed.split.bounds import check_bounds
from splitfed.split.cut import Cut, most_bytes
from splitfed.wire.frame import Frame, Packed, Place, look, pack, unpack
from splitfed.wire.header import Header, Scalar

if TYPE_CHECKING:
    from splitfed.scenario.compression import Compression

_ASK, _EARLY, _RISING, _ANSWER = "ask", "ask_early", "ask_rising", "answer"
_MADE, _BEFORE = "answer/made", "confidence"
MODEL = 16  # letters of the hash that names a front
MOST_MARKED = 1024  # images of a request or answer of which some are marked: 256 letters
_PLAIN = MEASURES[0]
_WHOLE = Rule(2.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks: of request `number`, that the model goes on after `block` with `tokens` `[B, k, D]`, which
    the front named by `model` made. `kept` are the places of images that the model may learn from. With a `rule` exits
    answer by it; `before` `[B]` is how sure the last one of the front was, None where that is no matter."""

    number: int
    block: int
    model: str
    tokens: Tensor
    kept: tuple[int, ...] = ()
    rule: Rule | None = None
    before: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Answer(Packed):
    """A frame that answers: `exits` is for each image the block after which it was answered, None by what follows the
    last block of the server."""

    exits: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """What an answer says of B images: `logits` `[B, C]`, whose softmax it is, and `exits` as in `Answer`."""

    logits: Tensor
    exits: tuple[int | None, ...]


class Asking:
    """Packs and unpacks requests and answers for images of a model that is cut; holds no state between calls, so both
    ends share it. `geometry` is that at the cut, for as many images as a request may hold. `exits` are those that
    answer at the server. Raises RunError for a reducer that merges samples."""

    def __init__(
        self, compression: "Compression", trunk: Trunk, geometry: Geometry, device: torch.device,
        exits: Exits | None = None,
    ) -> None:  # fmt: skip
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
        self._trunk, self._geometry, self._device, self._exits = trunk, geometry, device, exits
        up = _up(self._at_cut)
        self._kinds: dict[str, Expected] = {
            _ASK: up, _EARLY: _up(self._early), _RISING: {**up, _BEFORE: (Expect.floats((1, geometry.batch)),)},
        }  # fmt: skip
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
        attention: Callable[[], Tensor] | None = None, kept: Sequence[bool] = (), rule: Rule | None = None,
        before: Tensor | None = None,
    ) -> Packed:  # fmt: skip
        """Encode what block `block` made of images, `[B, n, D]`, as request `number` of whoever has the front named by
        `model`; `kept` tells which of them, `MOST_MARKED` at most, the model may learn from. With a `rule` exits of the
        server may answer, and so many images are the most; where confidences have to rise, and the last block of the
        front made this, `before` `[B]` is how sure its last exit was. Raises CodecError for what cannot be sent."""
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
            meta["kept"] = _marks(row for row, one in enumerate(kept) if one)
        kind = _ASK if cut is self._at_cut else _EARLY
        if rule is not None:
            meta |= _said(rule)
            if rule.rise is not None and before is not None:
                kind, packets[_BEFORE] = _RISING, (FloatCodec(torch.float32).encode(before, Key(0)), NoStage())
        return pack(kind, *place, packets, meta)

    def stand_in(self, tokens: Tensor, key: Key) -> Tensor:
        """Return activations at the cut, `[B, n, D]`, of which as many tokens are closed as a front's gates close."""
        return self._at_cut.reducer.stand_in(tokens, self._trunk.prefix, key, training=False)

    def unpack(self, buffer: bytes) -> Asked:
        """Decode a request. Raises WireError for anything else, and Diverged for numbers that no front makes."""
        frame = unpack(buffer, self._kinds, device=self._device, max_bytes=self.most_bytes)
        model = _named(frame.meta)
        del frame.meta["model"]
        kept, rule = _marked(frame.meta.pop("kept", "0"), "are kept"), _ruled(frame.meta)
        before = _sure(frame.tensors.pop(_BEFORE, None), rule)
        cut, block = self._at_cut, self._trunk.cut
        if frame.kind == _EARLY:
            cut, block = self._early, meta_number(frame.meta, "block", 1, self._trunk.cut - 1)
            frame.meta.pop("block")
        tokens = self._restored(cut, frame, block)
        if kept and kept[-1] >= len(tokens):
            raise WireError(f"image {kept[-1]} of {len(tokens)} is kept")
        if rule is not None and len(tokens) > MOST_MARKED:
            raise WireError(f"{len(tokens)} images that exits may answer, where {MOST_MARKED} are the most")
        if before is not None and len(before) != len(tokens):
            raise WireError(f"{len(before)} confidences of {len(tokens)} images")
        return Asked(frame.step, block, model, tokens, kept, rule, before)

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

    def answer(self, asked: Asked) -> Answer:
        """Go on with what was asked, and encode what comes of it in float32: logits `[B, C]`, or where a tail follows
        its input `[B, k, D]`. Raises CodecError for what cannot be sent."""
        return self.answers([asked])[0]

    @torch.no_grad()
    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """Answer requests that left after one block with as many tokens an image, together. Whom an exit answers by the
        rule of his request goes no further."""
        tokens = asked[0].tokens if len(asked) == 1 else torch.cat([one.tokens for one in asked])
        ways = [
            Way(self._exits if one.rule else None, one.rule or _WHOLE, len(one.tokens), tokens.device, one.before)
            for one in asked
        ]
        said = [torch.zeros(len(one.tokens), self._geometry.classes, device=tokens.device) for one in asked]
        trunk, block = self._trunk, asked[0].block
        if self._exits is not None and any(one.rule for one in asked):
            for stop in (stop for stop in self._exits.blocks if stop > block):
                tokens, block = trunk.go_on(block, tokens, stop), stop
                parts = tokens.split([len(way.rows) for way in ways])
                tokens = torch.cat([_left(*one, stop) for one in zip(ways, parts, said, strict=True)])
                if not len(tokens):
                    break
        if len(tokens):
            made = trunk.go_on(block, tokens, trunk.server)
            made = (made if trunk.tail else trunk.end(made)).float()
            for place, (way, part) in enumerate(zip(ways, made.split([len(way.rows) for way in ways]), strict=True)):
                if len(part) == len(way.exits):
                    said[place] = part
                else:
                    said[place][way.rows] = part
        return [
            self.pack_answer(one.number, found, way.exits) for one, found, way in zip(asked, said, ways, strict=True)
        ]

    def pack_answer(self, number: int, made: Tensor, exits: Sequence[int | None]) -> Answer:
        """Encode what answers request `number`: what was `made` of its images, as `answer` has it, and the block whose
        exit said so of each, or None."""
        packet = FloatCodec(torch.float32).encode(made.contiguous(), Key(0))
        meta: dict[str, Scalar] = {
            _of_exit(block): _marks(row for row, one in enumerate(exits) if one == block)
            for block in sorted({block for block in exits if block is not None})
        }
        packed = pack(_ANSWER, 0, 0, number, {_MADE: (packet, NoStage())}, meta)
        return Answer(packed.sizes, packed.total, packed.buffer, tuple(exits))

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
    def unpack_answer(self, buffer: bytes, number: int, images: int, exits: Sequence[int] = ()) -> Heard:
        """Decode what answers request `number`, of so many images, which exits after these blocks could answer. Raises
        WireError for anything else."""
        kinds = self.expected_answers(images)
        frame = unpack(buffer, kinds, max_bytes=most_bytes(kinds[_ANSWER]), device=self._device)
        if frame.step != number:
            raise WireError(f"an answer to request {frame.step}, where {number} was asked")
        made, by = frame.tensors[_MADE], _answered(frame.meta, images, exits)
        return Heard(self._trunk.end(self._trunk.go_on(self._trunk.server, made)) if self._trunk.tail else made, by)


def _left(way: Way, tokens: Tensor, said: Tensor, block: int) -> Tensor:
    """Note what an exit after a block says of those images of a request whom it answers, and return the others'
    tokens."""
    if (passed := way.passes(block, tokens)) is None:
        return tokens
    answered, logits = passed
    said[way.rows[answered]] = logits[answered].float()
    return way.leave(answered, tokens, block)


def _said(rule: Rule) -> dict[str, Scalar]:
    """Return how a request says by which rule exits of the server answer."""
    measure: dict[str, Scalar] = {} if rule.measure == _PLAIN else {"measure": rule.measure}
    rise: dict[str, Scalar] = {} if rule.rise is None else {"rise": float(rule.rise)}
    return {"sure": float(rule.threshold), **measure, **rise}


def _ruled(meta: dict[str, Scalar]) -> Rule | None:
    """Take out of a request's meta by which rule exits answer; None where none do. Raises WireError."""
    sure, measure, rise = meta.pop("sure", None), meta.pop("measure", _PLAIN), meta.pop("rise", None)
    if sure is None and measure == _PLAIN and rise is None:
        return None
    known = next((one for one in MEASURES if one == measure), None)
    if not isinstance(sure, float) or not 0 <= sure <= 1 or known is None or not isinstance(rise, float | None):
        raise WireError("a request that does not say how sure an exit must be")
    return Rule(sure, known, rise)


def _sure(before: Tensor | None, rule: Rule | None) -> Tensor | None:
    """Return how sure an exit of the front was, as a request says. Raises WireError where that is none."""
    if before is not None and (rule is None or rule.rise is None):
        raise WireError("a request that says how sure an exit was, and not by how much that must rise")
    if before is not None and not bool(((before >= 0) & (before <= 1)).all()):
        raise WireError("a request with a confidence that is not from 0 to 1")
    return before


def _of_exit(block: int) -> str:
    return f"exit_{block}"


def _answered(meta: dict[str, Scalar], images: int, exits: Sequence[int]) -> tuple[int | None, ...]:
    """Return which of these exits answered each image. Raises WireError for any other, and where two did."""
    found: list[int | None] = [None] * images
    for block in exits:
        for row in _marked(meta.pop(_of_exit(block), "0"), f"exit {block} answered"):
            if row >= images or found[row] is not None:
                raise WireError(f"an answer of exit {block} to image {row} of {images}, which has another or is none")
            found[row] = block
    if meta:
        raise WireError("an answer that says more than was asked")
    return tuple(found)


def _named(meta: Mapping[str, Scalar]) -> str:
    model = meta.get("model")
    if not isinstance(model, str) or len(model) > MODEL:
        raise WireError("a request that does not name its front")
    return model


def _marks(rows: Iterable[int]) -> str:
    """Return how some images are marked, by their places."""
    return f"{sum(1 << row for row in rows):x}"


def _marked(said: Scalar, what: str) -> tuple[int, ...]:
    """Return which images are marked. Raises WireError."""
    if not isinstance(said, str) or not re.fullmatch(f"[0-9a-f]{{1,{MOST_MARKED // 4}}}", said):
        raise WireError(f"a frame that does not say which images {what}")
    marks = int(said, 16)
    return tuple(row for row in range(marks.bit_length()) if marks >> row & 1)


def _up(cut: Cut) -> Expected:
    return {name: bounds for name, bounds in cut.expected_up.items() if name != "targets"}


def _blind() -> Tensor:
    raise RuntimeError("a reducer that reads attention must set needs_attention")
