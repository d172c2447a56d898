"""The way of a mini-batch through a front: which exits answer, and what is to be sent of the others."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from splitfed.errors import Diverged, SplitfedError
from splitfed.inference.asking import MOST_MARKED, Asking
from splitfed.inference.deciding import Rule
from splitfed.inference.predictor import Answered
from splitfed.inference.remote.bundle import Bundle
from splitfed.inference.way import Way
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.seeds import Key
from splitfed.wire.frame import Packed


@dataclass(frozen=True, slots=True)
class Leaving:
    """A request that is ready: of which images of the mini-batch it is (int64 `[k]`), and how its answer is read, which
    `exits` of the server, by their blocks, may have given."""

    number: int
    rows: Tensor
    packed: Packed
    asking: Asking
    exits: tuple[int, ...] = ()


@dataclass(slots=True)
class Walked:
    """Where the ways of B images ended at the client: `answered` is right for those that an exit was sure of, and for
    the others what the last exit said, after the block in `last` (None: there is none); `leaving` are the requests for
    these."""

    pixels: Tensor
    front: str
    answered: Answered
    last: list[int | None]
    leaving: list[Leaving] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sent:
    """Images of a mini-batch that leave after a `block`: their places (int64 `[k]`), what it made of them, `[k, n, D]`,
    the `attention` `[k, n]` of its class token where that is read, whether the server's exits are asked, and how sure
    the front's last one was, `[k]`."""

    rows: Tensor
    tokens: Tensor
    attention: Tensor | None
    block: int
    asks: bool
    before: Tensor | None


class Walker:
    """Takes images through the front of a bundle, and packs what is not answered there."""

    def __init__(self, bundle: Bundle, rule: Rule) -> None:
        self.bundle, self._rule = bundle, rule
        self._asks = bool(bundle.behind) and rule.answers  # the server's exits
        geometry = bundle.trunk.front.geometry(bundle.most, len(bundle.classes))
        self.asking = {
            rate.name: Asking(rate.compression, bundle.trunk, geometry, bundle.device) for rate in bundle.rates
        }
        self._trunks = {rate.name: bundle.trunk.at(rate.budget) for rate in bundle.rates}
        self._single = {rate.name: rate.compression.reducer.ragged for rate in bundle.rates}
        trunk = bundle.trunk
        # Where rates look at what a class token looks at; gated blocks run together, at the last.
        looked = {b for b in range(1, trunk.cut + 1) if any(one.needs_attention(b) for one in self.asking.values())}
        self._attention = {block: ClsAttention(trunk.front, block) for block in looked if not trunk.gated}
        if trunk.gated and trunk.cut in looked:
            self._attention = {trunk.cut: ClsAttention(trunk.front, trunk.cut)}

    def close(self) -> None:
        """Look no longer at the front's attention."""
        for one in self._attention.values():
            one.close()

    def sizes(self) -> dict[str, float]:
        """Return about how many bytes an image takes at each rate, both ways: those of random numbers, for as many
        tokens as are left."""
        trunk = self.bundle.trunk
        geometry = trunk.front.geometry(1, len(self.bundle.classes))
        numbers = Key(0).at("sizes").generator()
        tokens = torch.randn(1, geometry.tokens, geometry.width, generator=numbers).to(self.bundle.device)
        attention = torch.rand(1, geometry.tokens, generator=numbers).to(self.bundle.device)
        how: dict[str, Any] = {"attention": lambda: attention, "rule": self._rule if self._asks else None}
        down = 4 * (geometry.tokens * geometry.width if trunk.tail else geometry.classes)
        return {
            name: down
            + asking.pack(asking.stand_in(tokens, Key(0)), trunk.cut, Key(0), model=self.bundle.name, **how).total
            for name, asking in self.asking.items()
        }

    @torch.no_grad()
    def walk(
        self, pixels: Tensor, images: Tensor, rate: str, first: int, select: Callable[[Tensor], Tensor] | None = None
    ) -> Walked:  # fmt: skip
        """Take normalised images `[B, 3, S, S]` to where an exit answers, or they leave at this rate; requests are
        numbered from `first` on. `pixels` are kept beside. With a `select` those that leave are marked of which it says
        so, by what the last exit said of them."""
        bundle, trunk = self.bundle, self._trunks[rate]
        count = len(images)
        found = torch.zeros(count, len(bundle.classes), device=images.device)
        last: list[int | None] = [None] * count
        problems: list[str | None] = [None] * count
        way = Way(bundle.exits, self._rule, count, images.device)
        walked = Walked(pixels, bundle.name, Answered(found, way.exits, [None] * count, problems), last)
        tokens = trunk.begin(images)
        for block in range(1, trunk.cut + 1):
            tokens = trunk.block(block, tokens)
            attention = self._attention[block].read() if block in self._attention else None
            if (sure := way.passes(block, tokens)) is not None:
                answered, said = sure
                found[way.rows] = said.softmax(-1)
                for row in way.rows.tolist():
                    last[row] = block
                attention = None if attention is None else attention[~answered]
                tokens = way.leave(answered, tokens, block)
            rest = ~way.given_up if block == trunk.cut else torch.zeros_like(way.given_up)
            for gone, asks in ((way.given_up, False), (rest, self._asks)):  # of who was given up no exit is asked
                if bool(gone.any()):
                    looked = None if attention is None else attention[gone]
                    before = way.before[gone] if asks and way.before is not None else None
                    sent = Sent(way.rows[gone], tokens[gone], looked, block, asks, before)
                    self._send(walked, sent, rate, first, select)
            gone = way.given_up | rest
            tokens = way.leave(gone, tokens, None) if bool(gone.any()) else tokens
            if not len(tokens):
                break
        return walked

    def _send(
        self, walked: Walked, sent: "Sent", rate: str, first: int, select: Callable[[Tensor], Tensor] | None
    ) -> None:  # fmt: skip
        """Pack requests of as many images as one may hold; of samples with as many tokens as they need, of one."""
        asking, most = self.asking[rate], 1 if self._single[rate] else self.bundle.most
        rows, kept = sent.rows, list[bool]()
        if select is not None or sent.asks:
            most = min(most, MOST_MARKED)
        if select is not None:
            seen = all(walked.last[row] is not None for row in rows.tolist())  # by an exit, all of them or none
            kept = select(walked.answered.probabilities[rows]).tolist() if seen else []
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            number = first + len(walked.leaving)
            looked = None if sent.attention is None else partial(sent.attention.__getitem__, part)
            try:
                packed = asking.pack(
                    sent.tokens[part], sent.block, Key(0).at("ask", number), number=number, model=self.bundle.name,
                    attention=looked, kept=kept[part], rule=self._rule if sent.asks else None,
                    before=None if sent.before is None else sent.before[part],
                )  # fmt: skip
            except SplitfedError as error:  # numbers that cannot be sent
                for row in rows[part].tolist():
                    walked.answered.problems[row] = error.problem if isinstance(error, Diverged) else str(error)
                continue
            exits = self.bundle.behind if sent.asks else ()
            walked.leaving.append(Leaving(number, rows[part], packed, asking, exits))
