"""The crossing between front and back: reducer, codecs and frames of the data plane, the same object at both ends.

    client                                         server
    front -> plan -> reduce -> codec -> zstd  ==>  zstd -> codec -> restore -> back -> loss
    front <- autograd <------- codec <- zstd  <==  zstd <- codec <- cut gradient <---'

Frames up are `step` (one mini-batch) and `end` (the client's own count of bytes); down come `gradient`, or
where the front learns nothing `taken`, or `stored` where the back does so later, and `done`.

Where labels are private there is a second cut, before the tail, which the client holds with the loss. No targets go up;
`step` is answered with `features`, the activations at the second cut, and `backward`, their gradient, with `gradient`:

    front -> plan -> reduce ==> restore -> back ==> tail -> loss
    front <------ autograd <==  autograd <----- <== tail <---'
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from splitfed.compression.codecs.base import Packet
from splitfed.compression.codecs.floats import FloatCodec
from splitfed.compression.codecs.integers import IntegerCodec
from splitfed.compression.expect import MOST_TARGET, Expect, Expected, Geometry
from splitfed.compression.lossless import Lossless
from splitfed.compression.reducers.base import Plan, Reducer, View
from splitfed.compression.reducers.tokens.left import LeftTokens
from splitfed.compression.reducers.tokens.ragged import flat, padded
from splitfed.compression.reducers.trained.layers import IDENTITY
from splitfed.errors import CodecError, Diverged, WireError
from splitfed.model.adaptive.settings import AlastConfig
from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.split.bounds import check_bounds, check_number, largest
from splitfed.split.computing.rehearsal import PLACE, Crossed, RandomBatch
from splitfed.split.copies import Copies, CutCopies, Entry, Visit
from splitfed.split.ending import ENDING
from splitfed.wire.frame import Frame, Packed, Place, pack, unpack

if TYPE_CHECKING:
    from splitfed.scenario import Scenario
    from splitfed.scenario.compression import Compression

# Header and checksums of a frame, and the worst case of a codec that keeps a scale for every number.
_SLACK_BYTES, _MOST_BYTES_A_NUMBER = 1 << 17, 16


@dataclass(frozen=True, slots=True)
class Arrived:
    """A mini-batch as it arrives: what the back is trained on and the images that it stands for. Where labels are
    private `targets` only count the samples: they are all 0. `answered` says whether its gradient is asked for,
    `lengths` how many tokens each sample has, where smashed has a row for each token, and `reducer` what has made it;
    None is that of all."""

    frame: Frame
    smashed: Tensor
    targets: Tensor
    side: dict[str, Tensor]
    examples: int
    visit: Visit | None = None
    answered: bool = True
    lengths: Tensor | None = None
    reducer: Reducer | None = None


class Cut:
    """Packs and unpacks the frames of a model that is cut, with `private` labels twice; holds no state between calls,
    so both ends and all clients share it. Where both ends keep copies of samples (`kept`), it is given a `Visit` beside
    what it packs and unpacks."""

    def __init__(
        self, config: "Compression", geometry: Geometry, device: torch.device, private: bool = False, sharing: int = 1,
        adaptive: AlastConfig | None = None,
    ) -> None:  # fmt: skip
        self.reducer = config.reducer.build()
        if adaptive is not None:
            self.reducer = LeftTokens(self.reducer, geometry.tokens, *adaptive.left(geometry))
        self.geometry, self.device, self.private = geometry, device, private
        self._crossings = {
            "smashed": config.smashed, "targets": config.targets, "cut_gradient": config.cut_gradient,
            "tail_smashed": config.tail_smashed, "tail_gradient": config.tail_gradient,
        }  # fmt: skip
        self._stages = {role: (c.codec.build(), c.lossless.build()) for role, c in self._crossings.items()}
        self._stages["side"] = (IntegerCodec(), config.targets.lossless.build())
        self.expected_up = dict(self.reducer.expected(geometry))
        self.kept = CutCopies.of(config, self.reducer, geometry, sharing)
        if self.kept:
            self.expected_up |= self.kept.expected
            self._stages |= self.kept.stages
        if private:
            del self.expected_up["targets"]
        second = {"features": (Expect.floats(geometry.batch, geometry.tokens, geometry.width),)} if private else {}
        self.most_bytes = max(most_bytes(self.expected_up), most_bytes(second))

    @classmethod
    def of(cls, scenario: "Scenario", geometry: Geometry, device: torch.device, *, once: bool = False) -> Self:
        """Return the cut, or both, of a scenario's model; that of samples which cross `once`, as memory takes them,
        keeps no copies."""
        sharing = scenario.federation.clients * scenario.checkpoints.keep
        compression = scenario.compression.once if once else scenario.compression
        return cls(compression, geometry, device, scenario.federation.private, sharing, scenario.model.adaptive)

    def copies(self, kept: Mapping[int, Entry] | None = None) -> Copies | None:
        """Return a client's copies for a round that begins with those that are kept; None where none are."""
        return Copies(kept or {}, self.kept.most) if self.kept else None

    def encode(self, tensors: Mapping[str, Tensor], key: Key, where: str) -> dict[str, tuple[Packet, Lossless]]:
        """Encode each tensor with the codec of its role, and give it its lossless stage. Raises Diverged for what is
        not finite, and CodecError for what else cannot be sent; both name the tensor and `where` it is."""
        packets = {}
        for name, tensor in tensors.items():
            codec, lossless = self._stages.get(name) or self._stages[name.split("/")[0]]
            if tensor.is_floating_point() and not tensor.numel():
                codec = FloatCodec(torch.float32)  # of no samples there are no grids and no codebooks
            try:
                packets[name] = (codec.encode(tensor, key.at(name)), lossless)
            except CodecError as error:
                check_finite(name, tensor, where)
                raise CodecError(f"{name} at {where} cannot be sent: {error}") from error
        return packets

    @torch.no_grad()
    def plan(
        self, activations: Tensor, labels: Tensor, key: Key, attention: Callable[[], Tensor] | None = None,
        encoder: nn.Module = IDENTITY, reducer: Reducer | None = None, positions: Tensor | None = None,
    ) -> tuple[Plan, Tensor]:  # fmt: skip
        """Let the reducer, or another in its place, look at a mini-batch's activations `[B, n, d]`, whose tokens stood
        at `positions` (None: all are here), and at the class token's `attention` if it asks for it; return what it
        decides, and what it makes of the `labels` `[B]`."""
        view = View(activations.detach(), self.geometry.prefix, attention or _blind, encoder, positions)
        plan = (reducer or self.reducer).plan(view, key)
        return plan, plan.targets(labels, self.geometry.classes)

    def pack_step(
        self, plan: Plan, smashed: Tensor, targets: Tensor, examples: int, key: Key, place: Place,
        visit: Visit | None = None,
    ) -> Packed:  # fmt: skip
        """Encode a mini-batch of `examples` images; of private targets it says how many there are. Raises CodecError
        for what cannot be sent."""
        tensors = {"smashed": smashed.detach().float()} | ({} if self.private else {"targets": targets.detach()})
        tensors |= {f"side/{name}": tensor for name, tensor in plan.side.items()}
        outgoing = None
        if self.kept and visit:
            kept, outgoing = self.kept.up(visit, plan, smashed)
            tensors |= kept
        packets = self.encode(tensors, key, str(place))
        if self.kept and visit:
            self.kept.went_up(visit, outgoing, packets)
        meta = {**plan.meta, "examples": examples} | ({"targets": len(targets)} if self.private else {})
        return pack("step", *place, packets, meta)

    def unpack_up(self, buffer: bytes, features: Tensor | None = None, lengths: Tensor | None = None) -> Frame:
        """Decode a client's frame, `step` or `end`; `backward` alone where these `features` wait for their gradient,
        samples of such `lengths`. Raises WireError for anything else."""
        kinds: dict[str, Expected] = {"step": self.expected_up, **ENDING}
        if features is not None:
            shape = features.shape if lengths is None else (int(lengths.sum()), features.shape[-1])
            kinds = {"backward": {"tail_gradient": (Expect.floats(*shape),)}}
        # What copies are made of is decoded where both ends compute alike.
        device = "cpu" if self.kept and features is None else self.device
        frame = unpack(buffer, kinds, device=device, max_bytes=self.most_bytes)
        if lengths is not None and "tail_gradient" in frame.tensors:
            frame.tensors["tail_gradient"] = padded(frame.tensors["tail_gradient"], lengths)
        return frame

    def lengths(self, packed: Packed) -> Tensor | None:
        """Return how many tokens each sample of a packed step has; None where all have as many."""
        return self.batch(self.unpack_up(packed.buffer)).lengths if self.reducer.ragged else None

    def batch(self, frame: Frame, copies: Copies | None = None, *, answered: bool = True) -> Arrived:
        """Check what a `step` frame says beyond shapes, and keep what it makes of the client's `copies`; `answered`
        says whether its gradient will go back. Raises WireError, having kept nothing."""
        examples = self._count(frame, "examples")
        if self.private:
            targets = torch.zeros(self._count(frame, "targets"), dtype=torch.int64, device=self.device)
        else:
            targets = frame.tensors["targets"].to(self.device)
        if not targets.is_floating_point():
            check_labels(targets, self.geometry.classes)
        found = {name.split("/")[1]: tensor for name, tensor in frame.tensors.items() if name.startswith("side/")}
        side = {name: tensor.to(self.device) for name, tensor in found.items()}
        if not (self.kept and copies):
            smashed = frame.tensors["smashed"]
            self.reducer.check(smashed, targets, side, frame.meta, self.geometry)
            lengths = self.reducer.lengths(side)
            return Arrived(frame, smashed, targets, side, examples, None, answered, lengths, self.reducer)
        visit, shaped = self.kept.visit(frame.tensors, examples, copies)
        self.reducer.check(shaped, targets, side, frame.meta, self.geometry)
        smashed = self.kept.came_up(visit, frame.tensors, found).to(self.device)
        return Arrived(frame, smashed, targets, side, examples, visit, answered, reducer=self.reducer)

    def check(self, batch: Arrived) -> float:
        """Return the largest magnitude of what was smashed. Raises Diverged for a mini-batch that holds numbers with
        which no training goes on."""
        most = largest([batch.smashed])
        check_number("smashed", most, batch.frame.place)
        if batch.targets.is_floating_point():
            check_bounds("a target", batch.targets, batch.frame.place, MOST_TARGET)
        return most

    def _count(self, frame: Frame, name: str) -> int:
        count = frame.meta.pop(name, None)
        if type(count) is not int or not 1 <= count <= self.geometry.batch:
            raise WireError(f"a step of {repr(count)[:32]} {name}, where 1 to {self.geometry.batch} are allowed")
        return count

    def pack_features(self, frame: Frame, features: Tensor, key: Key, lengths: Tensor | None = None) -> Packed:
        """Encode the activations at the second cut, which answer a `step` frame; of samples of such `lengths` what
        these were filled up with stays here. Raises CodecError."""
        features = features if lengths is None else flat(features.detach(), lengths)
        packets = self.encode({"tail_smashed": features.detach().float()}, key, str(frame.place))
        return pack("features", *frame.place, packets)

    def unpack_features(self, buffer: bytes, samples: int, lengths: Tensor | None = None) -> Tensor:
        """Decode the activations at the second cut of so many `samples`, `[samples, k, D]`, those of different
        `lengths` filled up with zeros. Raises WireError for anything else."""
        shape = Expect.floats(samples, (1, self.geometry.tokens), self.geometry.width)
        if lengths is not None:
            shape = Expect.floats(int(lengths.sum()), self.geometry.width)
        frame = unpack(
            buffer, {"features": {"tail_smashed": (shape,)}}, device=self.device, max_bytes=self.most_bytes
        )  # fmt: skip
        features = frame.tensors["tail_smashed"]
        return features if lengths is None else padded(features, lengths)

    def pack_backward(self, gradient: Tensor, key: Key, place: Place, lengths: Tensor | None = None) -> Packed:
        """Encode the gradient at the second cut, of samples of such `lengths`. Raises CodecError for what cannot be
        sent."""
        gradient = gradient if lengths is None else flat(gradient, lengths)
        packets = self.encode({"tail_gradient": gradient.detach().float()}, key, str(place))
        return pack("backward", *place, packets)

    def pack_gradient(
        self, frame: Frame, gradient: Tensor, loss: float | None, key: Key, visit: Visit | None = None
    ) -> Packed:  # fmt: skip
        """Encode the cut gradient that answers a `step` or `backward` frame, with the loss where it is known here.
        Raises CodecError for what cannot be sent."""
        if self.kept and self.kept.gradient and visit:
            # A sample's own, whatever the size of the mini-batch that it came in.
            outgoing = self.kept.gradient.send(visit, gradient * len(visit.ids))
            packets = self.encode(outgoing.tensors, key, str(frame.place))
            self.kept.gradient.sent(visit, outgoing, packets)
        else:
            packets = self.encode({"cut_gradient": gradient.detach().float()}, key, str(frame.place))
        meta = {} if loss is None else {"loss": loss}
        return pack("gradient", *frame.place, packets, meta)

    def unpack_gradient(self, buffer: bytes, smashed: Tensor, visit: Visit | None = None) -> Frame:
        """Decode the gradient of what was sent. Raises WireError for anything else."""
        expected: Expected = {"cut_gradient": (Expect.floats(*smashed.shape),)}
        kept, rows = self.kept.gradient if self.kept and visit else None, tuple(smashed.shape[1:])
        if kept:
            expected = kept.expected(len(smashed), rows)
        device = "cpu" if kept else self.device
        frame = unpack(buffer, {"gradient": expected}, device=device, max_bytes=self.most_bytes)
        if kept and visit:
            gradient = kept.take(visit, rows, frame.tensors) / len(smashed)
            frame.tensors["cut_gradient"] = gradient.to(self.device)
        if not self.private and type(frame.meta.get("loss")) is not float:
            raise WireError("a gradient without its loss")
        return frame

    def pack_taken(self, frame: Frame, loss: float | None) -> Packed:
        """Encode what answers a frame where no gradient goes back: the loss, where it is known here."""
        return pack("taken", *frame.place, {}, {} if loss is None else {"loss": loss})

    def unpack_taken(self, buffer: bytes) -> Frame:
        """Decode the answer without a gradient; it has the loss unless labels are private. Raises WireError."""
        frame = unpack(buffer, {"taken": {}}, device=self.device, max_bytes=self.most_bytes)
        if type(frame.meta.get("loss")) is not float and not self.private:
            raise WireError("a mini-batch was taken without its loss")
        return frame

    def pack_stored(self, frame: Frame) -> Packed:
        """Encode what answers a `step` frame that the server keeps, to train on later."""
        return pack("stored", *frame.place, {})

    def unpack_stored(self, buffer: bytes) -> None:
        """Check the answer to what the server keeps. Raises WireError for anything else."""
        unpack(buffer, {"stored": {}}, device=self.device, max_bytes=self.most_bytes)

    def corrected(self, gradient: Tensor, smashed: Tensor, packed: Packed, visit: Visit | None = None) -> Tensor:
        """Return the gradient of what the client computed, from that of what the server saw: what the `packed` step
        holds, or the copies of a `visit`. The same, but for a codec that asks for a correction."""
        codec, _ = self._stages["smashed"]
        if not codec.correction:
            return gradient
        seen = visit.seen if visit else None
        if seen is None:
            seen = self.unpack_up(packed.buffer).tensors["smashed"]
        return gradient + codec.correction * (smashed.detach().float() - seen.to(smashed.device))

    def corrected_tail(
        self, gradient: Tensor, features: Tensor, packed: Packed, lengths: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Return the gradient of what the server computed, from that of what the client saw: the same at the second
        cut."""
        codec, _ = self._stages["tail_smashed"]
        if not codec.correction:
            return gradient
        seen = self.unpack_features(packed.buffer, len(features), lengths)
        return gradient + codec.correction * (features.detach().float() - seen)

    def raw(self, role: str, examples: int) -> int:
        """Return the bytes that a role would take in float32 without reduction, for a batch of `examples` images."""
        if role in ("smashed", "cut_gradient", "tail_smashed", "tail_gradient"):
            return 4 * examples * self.geometry.tokens * self.geometry.width
        return 8 * examples if role == "targets" else 0

    def sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        """Return what a frame adds to the ledger: its roles, then its envelope, which no uncompressed method needs."""
        rows = {
            role: Sizes(self.raw(role, examples), part.reduced, part.coded, part.sent)
            for role, part in packed.sizes.items()
        }
        return rows | {"envelope": Sizes(sent=packed.envelope)}

    def rehearse(
        self, batch: RandomBatch, key: Key, encoder: nn.Module = IDENTITY, decoder: nn.Module = IDENTITY,
        frozen: bool = False, ends: tuple[Copies | None, Copies | None] | None = None, evaluates: bool = False,
    ) -> Generator[Crossed, None, torch.Size]:  # fmt: skip
        """Take a mini-batch across and back, both ends here, and yield each frame when it is packed: which way it goes,
        and what it adds to the ledger. Return the shape of what enters the back.

        Until a frame goes up the client computes, until one comes down the server, and after the last the client. The
        model is left out but for the reducer's layers, which get gradients: random numbers stand for what it makes.
        Where the front is `frozen`, no gradient comes back; `evaluates` says whether it also evaluates.
        Where copies are kept, `ends` are those of client and server; without them every sample comes for the first
        time.
        """
        here, there = ends or (self.copies(), self.copies())
        visit = Visit(batch.ids, here) if here else None
        made = self.reducer.stand_in(batch.activations, self.geometry.prefix, key, training=not evaluates)
        attention = partial(batch.attention, made.shape[1])
        plan, targets = self.plan(made, batch.labels, key, attention, encoder, self.reducer.foreseen())
        smashed = plan.reduce(made)
        up = self.pack_step(plan, smashed, targets, len(batch), key, PLACE, visit)
        yield "up", self.sizes(up, len(batch))
        arrived = self.batch(self.unpack_up(up.buffer), there)
        given = arrived.smashed.requires_grad_()
        restored = self.reducer.restore(given, arrived.side, arrived.frame.meta, decoder)
        gradient = batch.like(restored.shape)
        if self.private:
            yield from self._rehearse_tail(arrived, gradient if evaluates else batch.behind(gradient), key)
        loss = None if self.private else 1.0
        if frozen:
            yield "down", self.sizes(self.pack_taken(arrived.frame, loss), len(batch))
            return restored.shape
        restored.backward(gradient)
        assert given.grad is not None
        down = self.pack_gradient(arrived.frame, given.grad, loss, key, arrived.visit)
        yield "down", self.sizes(down, len(batch))
        came = self.unpack_gradient(down.buffer, smashed, visit).tensors["cut_gradient"]
        smashed.backward(self.corrected(came, smashed, up, visit).to(smashed.dtype))
        return restored.shape

    def _rehearse_tail(self, batch: Arrived, features: Tensor, key: Key) -> Iterator[Crossed]:
        """Go through the exchange at the second cut, of features that are their own gradient."""
        lengths, samples = batch.lengths, len(features)
        down = self.pack_features(batch.frame, features, key, lengths)
        yield "down", self.sizes(down, batch.examples)
        up = self.pack_backward(self.unpack_features(down.buffer, samples, lengths), key, PLACE, lengths)
        yield "up", self.sizes(up, batch.examples)
        gradient = self.unpack_up(up.buffer, features, lengths).tensors["tail_gradient"]
        self.corrected_tail(gradient, features, down, lengths)


def _blind() -> Tensor:
    raise RuntimeError("a reducer that reads attention must set needs_attention")


def check_finite(what: str, numbers: Tensor, where: object, sides: Sequence[str] = ("client", "server")) -> None:
    """Raise Diverged where numbers are not finite; `sides` are those whose learning rates may be the cause."""
    if not bool(numbers.detach().isfinite().all()):
        raise Diverged(str(where), f"{what} is NaN or infinite", sides)


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise WireError for labels (int64 `[B]`, one at least) that no class has."""
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        raise WireError(f"labels from {low} to {high}, where there are {classes} classes")


def most_bytes(expected: Expected) -> int:
    """Return the bytes that a frame of these tensors takes at most, whatever their codecs."""
    numbers = sum(max(_largest(expect) for expect in choices) for choices in expected.values())
    return _SLACK_BYTES + _MOST_BYTES_A_NUMBER * numbers


def _largest(expect: Expect) -> int:
    numbers = 1
    for _, high in expect.dims:
        numbers *= high
    return numbers
