"""What crossed in a call, client by client, as the ledger heard of it; and what will cross, before it does."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitfed.federation.phases import Phase
from splitfed.model.adaptive.alast import answered_share
from splitfed.run.ledger import Row
from splitfed.scenario import Scenario
from splitfed.scenario.sections import COMMON, Terms
from splitfed.seeds import Key
from splitfed.server.model import Model
from splitfed.split import ending
from splitfed.split.assembly import Cuts
from splitfed.split.computing.rehearsal import Pair, RandomBatch, mixed, pairs, size


@dataclass(slots=True)
class Sent:
    """What a client and the server sent each other in a call, in bytes: weights and numbers of the message down
    (`order`) and of the one up (`reply`), the frames of mini-batches with their answers, and those of the end (None: it
    did not come to that)."""

    order: int = 0
    reply: int = 0
    frames: list[Pair] = field(default_factory=list)
    end: Pair | None = None

    @property
    def total(self) -> int:
        """All bytes, both ways."""
        return self.order + self.reply + sum(map(sum, self.frames)) + sum(self.end or ())

    def scaled(self, times: float) -> "Sent":
        """Return so many times as many bytes in each message and frame."""
        frames = [(round(times * up), round(times * down)) for up, down in self.frames]
        return Sent(round(times * self.order), round(times * self.reply), frames, self.end)


class Traffic:
    """Hears of all that the ledger counts. Of messages it takes what is the same wherever clients run: their envelopes
    have addresses and numbers of nodes in them."""

    def __init__(self) -> None:
        self._sent: dict[int, Sent] = defaultdict(Sent)
        self._up: dict[int, tuple[int, bool]] = {}  # frames that are not answered, and whether each is an end

    def hear(self, rows: Sequence[Row]) -> None:
        """Hear of one frame, or of one message."""
        if not rows:
            return
        first = rows[0]
        client, up = first.client, first.direction == "up"
        if first.plane == "control":
            told = sum(row.sizes.sent for row in rows if row.role != "envelope")
            if up:
                self._sent[client].reply += told
            else:
                self._sent[client].order += told
            return
        sent = sum(row.sizes.sent for row in rows)
        if up:
            self._answer(client, 0)
            self._up[client] = sent, all(row.role == "envelope" for row in rows)
        else:
            self._answer(client, sent)

    def take(self) -> dict[int, Sent]:
        """Return what each client sent and was sent since this was asked last."""
        for client in list(self._up):
            self._answer(client, 0)
        taken, self._sent = self._sent, defaultdict(Sent)
        return dict(taken)

    def _answer(self, client: int, down: int) -> None:
        if client not in self._up:
            return
        up, ends = self._up.pop(client)
        if ends:
            before = self._sent[client].end or (0, 0)  # a round may have streams of several calls
            self._sent[client].end = before[0] + up, before[1] + down
        else:
            self._sent[client].frames.append((up, down))


class Foreseen:
    """Foretells what a round sends, before any lossless stage makes it smaller: what `splitfed.split` would pack of
    random numbers of the same shape. Differences to what clients know count as whole."""

    def __init__(self, scenario: Scenario, model: Model, cuts: Cuts, key: Key) -> None:
        self._scenario, self._model, self._cuts, self._key = scenario, model, cuts, key
        self._frames: dict[tuple[int, bool, bool, Terms], list[Pair]] = {}
        self._weights: dict[tuple[int, Terms], int] = {}
        self._samples = max(map(len, model.data.partitions), default=0) * (scenario.data.variants or 1)

    def __call__(self, phase: Phase, images: Sequence[int], terms: Terms = COMMON) -> Sent:
        """Return what a client sends and is sent whose mini-batches that go up have so many images."""
        weights = self._of_weights(phase, terms)
        sent = Sent(weights, 0 if phase.frozen else weights)
        if not self._scenario.federation.splits:
            return sent
        every = self._scenario.answer_every(phase, terms)
        share = answered_share(self._model.front)
        for place, number in enumerate(images):
            quiet = not every or place % every > 0
            frames = self._of_batch(number, quiet, phase.frozen, terms)
            sent.frames += frames if quiet or share == 1 else mixed(
                share, frames, self._of_batch(number, True, phase.frozen, terms)
            )  # fmt: skip
        sent.end = pairs(ending.rehearse())[0]
        return sent

    def _of_batch(self, images: int, quiet: bool, evaluates: bool, terms: Terms) -> list[Pair]:
        if (images, quiet, evaluates, terms) not in self._frames:
            cut, key = self._cuts.under(terms), self._key.at("foreseen", images)
            encoder, decoder = self._model.front.encoder, self._model.back.decoder
            batch = RandomBatch(images, cut.geometry, key, cut.device, self._model.back, self._samples)
            frames = cut.rehearse(batch, key, encoder, decoder, quiet, evaluates=evaluates)
            self._frames[images, quiet, evaluates, terms] = pairs(frames)
            for part in (encoder, decoder):
                part.zero_grad(set_to_none=True)
        return self._frames[images, quiet, evaluates, terms]

    def _of_weights(self, phase: Phase, terms: Terms) -> int:
        if phase.frozen:
            return 0
        if (phase.first, terms) not in self._weights:
            held = self._model.held_by[self._scenario.cut_of(terms.profile)]
            wire = held.at(phase.first).wire.under(self._scenario.compression_under(terms))
            self._weights[phase.first, terms] = size(wire.rehearse(self._key))
        return self._weights[phase.first, terms]


Foresees = Callable[[Phase, Sequence[int], Terms], Sent]
