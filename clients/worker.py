"""Trains what a client holds of the model: a worker loads client after client.

The loop is a client's round; `splitfed.clients.steps` has what becomes of a mini-batch. Nothing of a client stays in
the worker; what must outlive a round is in `ClientState`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from splitfed.clients.ahead import MiniBatch, Step, ahead, in_turn
from splitfed.clients.connect import Measured, Reach, connect
from splitfed.clients.images import Holding, hold
from splitfed.clients.settings import Settings
from splitfed.clients.state import ClientState
from splitfed.clients.steps import (
    Anchor,
    FrozenStep,
    LocalStep,
    SparseStep,
    SplitStep,
    StoredStep,
    WholeStep,
    step_of,
)
from splitfed.clients.weights import Wires
from splitfed.compression.reducers.trained.layers import DECODER
from splitfed.data.augment import variants_of
from splitfed.data.batches import Batch, batches, count_batches
from splitfed.errors import RunError, WireError
from splitfed.model.adaptive.alast import Tally, adaptives, budgets_of, give_budgets
from splitfed.model.build import pixel_stats
from splitfed.model.exits.fraug import FRAUG, Fraug, share_made_up
from splitfed.model.optim import pick_device, read_optimiser, set_lr, write_optimiser
from splitfed.model.optim_settings import SideConfig
from splitfed.model.parts import Front
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.scenario.sections import COMMON, Terms
from splitfed.seeds import Key
from splitfed.split.assembly import Cuts, assemble, check_fits
from splitfed.split.autoencoder import Aligner
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.adaptive import PassOperations
from splitfed.split.computing.compiled import compile_blocks
from splitfed.split.computing.operations import adapted_operations
from splitfed.split.copies import Copies, Visit
from splitfed.split.cut import Cut
from splitfed.split.ending import pack_end, unpack_done
from splitfed.split.weights.initial import HeldByPhase
from splitfed.split.weights.turns import Turns
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.channel import Invitation, Stream
from splitfed.wire.frame import Place
from splitfed.wire.records import shown


@dataclass(frozen=True, slots=True)
class Trained:
    """What a client's round came to: new weights, and the means and sums that are reported."""

    weights: dict[str, Tensor]
    loss: float
    steps: int
    examples: int
    throughput: float | None = None
    operations: float | None = None


class Worker:
    """What a client holds with all that trains it, made once and loaded for each client.

    `told` are the server's class names; `holding` is what another worker of this process has opened already. Raises a
    SplitfedError for what this machine lacks: data, or the device.
    """

    def __init__(
        self, scenario: Scenario, settings: Settings, told: Sequence[str] = (), holding: Holding | None = None
    ) -> None:  # fmt: skip
        scenario = settings.with_chunk(scenario)
        self.scenario, self.key = scenario, Key(scenario.seed)
        self.holding = holding or hold(scenario, settings, told)
        classes = len(self.holding.classes)
        self.device = pick_device(settings.device or scenario.training.client.device)
        # Weights come from the server, so none are loaded here unless that is asked for.
        loads = scenario.compression.front_weights.initial == "load"
        parts = assemble(settings.with_weights(scenario) if loads else scenario, classes, pretrained=loads or False)
        self.parts = parts = parts.to(self.device, scenario.training.precision)
        if settings.chunk is not None:
            check_fits(scenario, parts.front)
        self.held = HeldByPhase(scenario, parts)
        self.part = self.held.plain.part.train()
        self.front, self.decoder = self.part.front, parts.back.decoder
        self.geometry = self.front.geometry(scenario.training.batch_size, classes)
        self.cuts, self._stored_across = (
            Cuts(scenario, self.geometry, self.device, once=once) for once in (False, True)
        )
        self.cut = self.cuts.plain
        none = WeightWire({}, scenario.compression)
        self._once = none if loads else WeightWire.of_frozen(self.part, scenario.compression)
        self._turns = Turns(scenario, self.part)
        # What a client's own weights begin with where nobody sends it.
        self._own = {name: tensor.clone() for name, tensor in self.part.own().items()} if loads else {}
        self.fitting = scenario.compression.reducer.alignment()
        self.alignment_wires = WeightWire.of_alignment(self.front, self.decoder, scenario.compression)
        self.mean, self.std = pixel_stats(scenario.model)
        if scenario.training.client.compile:
            watched = any(self.cuts.under(one).reducer.needs_attention for one in scenario.all_terms())
            compile_blocks(self.part.blocks(watched), "client", self.geometry, scenario.training.precision)
        self.chunk = scenario.training.client.chunk
        self.step = step_of(scenario.federation)(self.part, self.cut, scenario.training.precision, self.chunk)
        self._steps: dict[Cut, WholeStep | SplitStep] = {self.cut: self.step}
        self._counting: dict[str, PassOperations] = {}
        self._deployed = isinstance(scenario.engine, Deployment)
        said = settings.profile or ""
        self._profile = (lambda _: said) if self._deployed else scenario.dealt_profiles().__getitem__

    def train(
        self, client: int, round: int, weights: dict[str, Tensor], invitation: Invitation, reach: Reach, states: Path,
        proximal: float = 0.0, vanishes_after: int | None = None, trained: int | None = None,
        stored: int | None = None, copies: Copies | None = None, terms: Terms = COMMON,
    ) -> Trained | None:  # fmt: skip
        """Train what a client holds for a round, mini-batch by mini-batch, against the split server that invites it;
        alone where that is the whole model.

        `proximal` is FedProx's mu (arXiv 1812.06127, section 3.2): mu/2 times the squared distance of what it holds to
        the round's first joins the loss that is minimised, not the one that is reported. In a simulation the client may
        have to vanish after so many mini-batches: it leaves without a word, keeps nothing, and None is returned. Where
        the server keeps what it sends, so many mini-batches are `stored` already, and the others are sent. `copies` are
        what `copies` returned, and `terms` those under which all crosses.

        Raises WireError where the server's replies are not what was asked for, Diverged for numbers that are not finite
        any more, CodecError for what else cannot be sent, and Lacking where what it kept of the round in which it was
        last `trained` is gone.
        """
        frozen, part = self.scenario.phase(round).frozen, self.held.at(round).part
        by = self.scenario.ahead(round)
        own = self.own(states, client, round, trained)
        self.load(weights, states, client, own, part)
        state, adapted = self.state(states, client), adaptives(part.front, part.beside)
        if adapted:
            give_budgets(state.budgets(round, trained), adapted)
            for one in adapted:
                one.tally = Tally()
        learner = None if frozen else self._learner(part, client, round, states, proximal, trained)
        step = self._step(round, part, stored, terms)
        fraug = None if frozen else self._fraug(client, round, own)
        part.train(not frozen)
        part.turn_to(round)
        rows = self.holding.rows(client)
        losses, number, up, down = 0.0, 0, 0, 0
        with (
            self.stream(invitation, client, round, reach, by) as opened,
            self.part.making_up(fraug), part.making_up(fraug),
        ):  # fmt: skip
            stream = Measured(opened) if self._deployed and opened is not None else opened
            batches = islice(self._mini_batches(client, round, rows, stored, copies), vanishes_after)
            through = in_turn(step, stream, batches)
            if by and isinstance(step, SplitStep):
                through = ahead(step, by, stream, batches)
            for loss, sent, received in through:
                if learner:
                    learner.update()
                number, losses, up, down = number + 1, losses + loss, up + sent, down + received
            if vanishes_after is not None:
                return None
            crossed = step.crossed if isinstance(step, LocalStep) else number
            if stream is not None:
                end(stream, Place(round, client, crossed + 1), up, down)
        if learner:
            learner.keep(round)
        if adapted:
            state.save_budgets(round, budgets_of(adapted))
        if self._has_own:  # after each round, or the next one would look for it
            state.save_own(round, own | part.own() | (fraug.state() if fraug else {}))
        if copies:
            state.save_copies(round, copies.now, trained)
        elif stored is not None:
            state.drop_copies(round, self.scenario.phase(round).first)
        whole = step.loss if isinstance(step, LocalStep) else None
        loss = losses / max(1, number) if whole is None else whole
        pace = stream.throughput if isinstance(stream, Measured) else None
        beside = fraug.samples if fraug else 0
        computed = adapted_operations(part, self.geometry, self.scenario, self._counting, beside)
        return Trained(part.travelling(round), loss, crossed, len(rows), pace, computed)

    def _step(self, round: int, part: ClientPart, stored: int | None, terms: Terms) -> Step:
        phase, step = self.scenario.phase(round), self._across(self.cuts.under(terms))
        if not phase.frozen and not phase.local:
            every = self.scenario.answer_every(phase, terms)
            return step if every == 1 or not isinstance(step, SplitStep) else SparseStep(step, every)
        assert isinstance(step, SplitStep)
        if phase.local:
            return LocalStep(step, part, phase)
        return FrozenStep(step) if stored is None else StoredStep(step, self._stored_across.under(terms))

    def _across(self, cut: Cut) -> WholeStep | SplitStep:
        if not isinstance(self.step, SplitStep):
            return self.step
        if cut not in self._steps:
            self._steps[cut] = self.step.across(cut)
        return self._steps[cut]

    def terms(self, client: int, point: str | None = None) -> Terms:
        """Return the terms under which a client's tensors cross, at the operating `point` that the server names. Raises
        WireError for one that the scenario has not."""
        if point and point not in self.scenario.points:
            raise WireError(
                f"the server's order names the operating point {shown(point, 40)}, and its scenario does not"
            )
        return Terms(self._profile(client), point or "")

    def _mini_batches(
        self, client: int, round: int, rows: Tensor, stored: int | None, copies: Copies | None
    ) -> Iterator[MiniBatch]:
        """Give a client's mini-batches, each with its place and what it draws from."""
        for number, batch in enumerate(self._batches(client, round, rows, stored), 1):
            images, labels = batch.images.to(self.device), batch.labels.to(self.device)
            key, place = self.key.at("step", round, client, number), Place(round, client, number)
            yield MiniBatch(images, labels, key, place, self.visit(batch, copies))

    def _batches(self, client: int, round: int, rows: Tensor, stored: int | None) -> Iterator[Batch]:
        """Give the mini-batches of a client's round; those after the first `stored` of all its images in all variants
        that memory keeps, in an order that is the same in all rounds."""
        data, training, federation = self.scenario.data, self.scenario.training, self.scenario.federation
        variants = variants_of(data, self.key)
        load = partial(
            batches, self.holding.images, rows, training.batch_size, augment=data.augment, workers=data.workers,
            variants=variants, mean=self.mean, std=self.std,
        )  # fmt: skip
        if stored is None:
            key = self.key.at("batches", round, client)
            yield from load(key, steps=federation.local_steps, epochs=federation.local_epochs)
            return
        each = count_batches(len(rows), training.batch_size, None, 1)
        drawn = variants.draw(self.key.at("stored", client), len(rows)) if variants else None
        for time in range(self.scenario.stored_variants):
            key, first = self.key.at("stored", client, time), max(0, stored - time * each)
            if first < each:
                shown = None if drawn is None or variants is None else (drawn + time) % variants.count
                yield from load(key, epochs=1, start=first, variant=shown)

    def wires(self, round: int | None = None, terms: Terms = COMMON) -> Wires:
        """Return what weights cross by in a round, under these terms; without one, to be evaluated."""
        held = self.held.plain if round is None else self.held.at(round)
        turns = None if round is None or self.part.turns == 1 else self._turns
        return Wires(held.wire.under(self.scenario.compression_under(terms)), self._once, held.initial, turns)

    def _learner(
        self, part: ClientPart, client: int, round: int, states: Path, proximal: float, trained: int | None
    ) -> "_Learner":
        training, rounds = self.scenario.training, self.scenario.federation.rounds
        keep = self.state(states, client) if training.client_state == "keep" else None
        optimiser = training.client.optimiser_for(part, training.head_lr)
        if keep:
            if trained is not None and self.scenario.phase(trained).frozen:
                trained = None  # it was taken, and learned nothing
            first, lasting = self.scenario.phase(round).first, sum(p.requires_grad for p in self.part.parameters())
            write_optimiser(optimiser, keep.before(round, optimiser, trained, first, lasting))
        set_lr(optimiser, training.client.lr(round, rounds))
        optimiser.zero_grad(set_to_none=True)  # a step that failed may have left some
        return _Learner(part, training.client, optimiser, Anchor(part, proximal), keep)

    def copies(self, states: Path, client: int, round: int, trained: int | None) -> Copies | None:
        """Return what a client and the server both keep, in a round, of its samples since that in which it was last
        `trained`; None where they keep nothing. Raises Lacking where it is not here any more."""
        if not self.cut.kept or self.scenario.remembers(round):
            return None
        return self.cut.copies({} if trained is None else self.state(states, client).copies(trained))

    def visit(self, batch: Batch, copies: Copies | None) -> Visit | None:
        """Return which samples, in which of their variants, a mini-batch has, where copies of them are kept."""
        return Visit(batch.rows * (self.scenario.data.variants or 1) + batch.variants, copies) if copies else None

    def state(self, states: Path, client: int) -> ClientState:
        """Return what a client keeps between rounds."""
        return ClientState(states, client, self.scenario.checkpoints.keep)

    def own(self, states: Path, client: int, before: int, trained: int | None = None) -> dict[str, Tensor]:
        """Return the weights that are a client's own, from its last round before that one, or what they begin with
        where that is not sent: norms, and what makes up features. Raises RunError for those of another model, and
        Lacking where those of the round are gone in which it was last `trained`."""
        if not self._has_own:
            return {}
        norms = {name: tensor.shape for name, tensor in self.part.own().items()}
        own = self.state(states, client).own(before, trained)
        if own and {name: own[name].shape for name in own if not name.startswith(FRAUG)} != norms:
            raise RunError(_ANOTHER.format(client))
        return own or self._own

    @property
    def _has_own(self) -> bool:
        """Whether a client has weights of its own, which nobody else ever sees."""
        return bool(self.part.own()) or self.part.generator is not None

    def _fraug(self, client: int, round: int, own: dict[str, Tensor]) -> Fraug | None:
        """Return what makes up features in a client's round, with what its last round has left of its `own`."""
        settings, found = self.scenario.training.client.fraug, self.part.generator
        if settings is None or found is None:
            return None
        generator, part = found
        weight = self.scenario.model.exits.weight if isinstance(part, Front) and self.scenario.model.exits else 1.0
        share = share_made_up(settings, round, self.scenario.federation.rounds)
        key = self.key.at("fraug", client)
        try:
            return Fraug(settings, generator, part.last_head, key, share, own, weight)
        except (KeyError, RuntimeError):
            raise RunError(_ANOTHER.format(client)) from None

    def load(
        self, weights: dict[str, Tensor], states: Path, client: int, own: dict[str, Tensor],
        part: ClientPart | None = None,
    ) -> None:  # fmt: skip
        """Take over a client's weights: those that came for a `part` (None: what is evaluated), its `own`, and the
        encoder that it has fitted, if it has one. Raises RunError where that is not there any more."""
        norms = {name: tensor for name, tensor in own.items() if not name.startswith(FRAUG)}
        (part or self.part).load_travelling({**weights, **norms})
        if self.fitting:
            self._take_encoder(self.state(states, client).encoder())

    def stream(
        self, invitation: Invitation, client: int, round: int, reach: Reach, ahead: int = 0
    ) -> AbstractContextManager:
        """Open a client's stream to the split server, for one that is so many mini-batches `ahead`; None stands for it
        where the client holds the whole model."""
        if not self.scenario.federation.splits:
            return nullcontext()
        return connect(invitation, client, round, reach, self.cuts.most_bytes, ahead)

    def align(
        self, client: int, round: int, weights: dict[str, Tensor], both: bool, states: Path
    ) -> tuple[dict[str, Tensor], int]:
        """Fit the encoder, and with `both` the decoder, to a client's images, from the `weights` of front, encoder and
        decoder; keep the encoder, and return the decoder's weights and the number of images."""
        assert self.fitting is not None
        self.front.load_state_dict({name: t for name, t in weights.items() if not name.startswith(DECODER)})
        parts = {name.removeprefix(DECODER): t for name, t in weights.items() if name.startswith(DECODER)}
        self.decoder.load_state_dict(parts)
        rows, training = self.holding.rows(client), self.scenario.training
        aligner = Aligner(
            self.front, self.front.encoder, self.decoder, self.fitting.lr, training.precision, both=both,
            chunk=self.chunk,
        )  # fmt: skip
        aligner.fit(
            batches(
                self.holding.images, rows, training.batch_size, self.key.at("align", client),
                augment=self.scenario.data.augment, variants=variants_of(self.scenario.data, self.key),
                workers=self.scenario.data.workers, mean=self.mean, std=self.std,
                epochs=self.fitting.epochs,
            )
        )  # fmt: skip
        self.state(states, client).save_encoder(self.front.encoder.state_dict())
        return {DECODER + name: tensor for name, tensor in self.decoder.state_dict().items()}, len(rows)

    def _take_encoder(self, encoder: dict[str, Tensor]) -> None:
        try:
            self.front.encoder.load_state_dict(encoder)
        except RuntimeError:
            raise RunError("the encoder that this client has kept is that of another model: start a new run") from None


@dataclass(frozen=True, slots=True)
class _Learner:
    """What a client's part learns by in a round: its optimiser, and where that is kept from round to round."""

    part: ClientPart
    side: SideConfig
    optimiser: torch.optim.Optimizer
    anchor: Anchor
    kept_in: ClientState | None

    def update(self) -> None:
        """Apply the gradients of a mini-batch."""
        self.anchor.pull()
        self.side.step(self.optimiser, self.part)

    def keep(self, round: int) -> None:
        """Keep the optimiser that a round has left, where that is wanted."""
        if self.kept_in:
            self.kept_in.save(round, read_optimiser(self.optimiser))


_ANOTHER = "the weights that client {} has of its own are another model's: start a new run"


def end(stream: Stream, place: Place, up: int, down: int) -> None:
    """End a stream with this client's count of bytes. Raises WireError where the server has another."""
    unpack_done(stream.exchange(pack_end(place, up, down).buffer), place.step)
