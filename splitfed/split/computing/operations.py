"""What a training step of a scenario computes at each side, counted by torch while it runs (`FlopCounterMode`).

Counted are the products of matrices, convolutions and Fourier transforms of the real modules, forward and backward: the
front, the back, the tail, their exits, what makes up features beside them, the reducer's two halves, and the codecs.
Samples of one shape take the same, so one passes through the model for all; reducer and codecs see a whole mini-batch
of random activations.

- Attention counts as its two products and their gradients, on any device: what a fused kernel computes once more to
  save memory is left out.
- K-means is seen whole: in each iteration the distances of B points of n numbers to T centres, 2 B T n, and the means
  as a product of the same size. How many iterations it takes on images is a guess.
- torch does not count Fourier transforms. Of N complex numbers they are counted as 5 N log2 N, and as half of that
  where one side is real, as is the custom.
- Not seen is what is done number by number (norms, softmax, the loss, reading the class token's attention, rounding,
  the products of spectra), sorting, packing of bits, and the lossless stage. Optimisers are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from splitfed.compression.expect import Geometry
from splitfed.data.dataset import load
from splitfed.federation.phases import Phase, spans
from splitfed.model.adaptive.alast import adaptives
from splitfed.model.adaptive.attention import check_readable
from splitfed.model.exits.fraug import Fraug
from splitfed.model.exits.heads import exits_of, watching
from splitfed.model.forward import keyed_rng
from splitfed.model.parts import Back, Front, Parts
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.assembly import assemble, check_fits
from splitfed.split.auxiliary import Auxiliary, align
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.adaptive import Expected, PassOperations, expected
from splitfed.split.computing.rehearsal import RandomBatch
from splitfed.split.cut import Cut

_SAMPLES = 2  # beside which features are made up: of one there is nothing to norm by


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations for each training image; a multiplication and an addition are two.

    `front`, `back` and `tail` are the model's parts, the later ones on what the reducer leaves them; `reducing` and
    `restoring` are what reducer and codecs add at the client and at the server. `plain_back` and `plain_tail` are those
    without a reducer, and `examples` the mini-batch that was counted. Where a client trains the whole model, all beside
    the front is its tail. `taught` is what a client computes in a local phase, with the auxiliary net, and with what it
    packs and fits of the mini-batches that go up; of several phases that which takes most; 0 where there is none.
    `making_up` is what of the front is for features that are made up for its exit; those of a tail are in that.
    `front_forward` and `back_forward` are the share of those parts that a pass without backward takes. Where blocks
    have budgets, all of these are what is to be expected (`adaptive`), and `plain_front` and the like are without.
    """

    front: float
    reducing: float
    back: float
    restoring: float
    plain_back: float
    examples: int
    tail: float = 0.0
    plain_tail: float = 0.0
    front_forward: float = 0.0
    back_forward: float = 0.0
    taught: float = 0.0
    plain_front: float = 0.0
    adaptive: Expected | None = None
    making_up: float = 0.0

    @property
    def client(self) -> float:
        """What the client computes for an image."""
        return self.front + self.reducing + self.tail

    @property
    def server(self) -> float:
        """What the server computes for an image."""
        return self.back + self.restoring

    @property
    def client_ratio(self) -> float:
        """The client's operations over those without reducer and codecs."""
        return self.client / ((self.plain_front or self.front) + self.plain_tail)

    @property
    def server_ratio(self) -> float:
        """The server's operations over those without reducer and codecs."""
        return self.server / self.plain_back if self.plain_back else 1.0


def count(scenario: Scenario, classes: int | None = None) -> Operations:
    """Count a step of a full mini-batch, on the CPU. `classes` are those of the data set, which is only loaded where
    neither they nor `data.expect` say how many. Raises SplitfedError as a run would."""
    key = Key(scenario.seed)
    classes = classes or _classes(scenario, key)
    parts = assemble(scenario, classes, pretrained=False)
    check_fits(scenario, parts.front)
    cut = Cut.of(scenario, parts.front.geometry(scenario.training.batch_size, classes), torch.device("cpu"))
    if cut.reducer.needs_attention:
        check_readable(parts.front)
    return count_step(parts, cut, scenario, scenario.training.batch_size, key)


def _classes(scenario: Scenario, key: Key) -> int:
    if (expect := scenario.data.expect) is not None:
        return expect.classes
    return len(load(scenario.data, scenario.model.image_size, scenario.federation.clients, key.at("data")).classes)


def count_step(parts: Parts, cut: Cut, scenario: Scenario, examples: int, key: Key) -> Operations:
    """Count a step of `examples` images between a model's parts, or of a client that trains all of it, on their device;
    leaves no gradients."""
    part = ClientPart.of(scenario, parts)
    part.turn_to(1)
    each = making_up(part, scenario) if examples > 1 else 0.0  # beside one sample alone none are made up
    made = (each, 0.0) if parts.front.generator is not None else (0.0, each)
    if not scenario.federation.splits:
        return _count_whole(parts, cut, scenario.model.image_size, examples, key, made[1])
    found = _count_split(parts, cut, scenario.model.image_size, examples, key, made)
    if again := (scenario.training.client.chunk or examples) < examples:
        found = replace(found, front=found.front + found.front_forward)
    phases = [phase for phase, _ in spans(scenario.phases, scenario.federation.rounds) if phase.local]
    return replace(found, taught=max((_taught(found, phase, parts, cut, key, again) for phase in phases), default=0.0))


def _taught(found: Operations, phase: Phase, parts: Parts, cut: Cut, key: Key, again: bool) -> float:
    """Return what a client computes for an image in a phase in which an auxiliary net teaches its front, and is passed
    `again` on the way back."""
    assert phase.local is not None
    shape = cut.geometry.tokens, cut.geometry.width
    net = Auxiliary(parts.back, phase.local.blocks, phase.first).to(cut.device)
    sent = 1 / phase.upload_every if phase.upload_every else 0.0
    with keyed_rng(key.at("operations", "net"), cut.device):
        (beside, forward), fit = _sample(net, shape, cut.device, inner=True), 0
        if answered := (sent / phase.answer_every if phase.answer_every else 0.0):
            made, labels = torch.randn(1, *shape, device=cut.device), torch.zeros(1, dtype=torch.int64)
            with _counting() as counter:
                align(net, made, labels.to(cut.device), torch.randn_like(made), lambda _: nullcontext())
            fit = counter.get_total_flops()
    return found.front + beside + again * forward + found.reducing * sent + fit * answered


def making_up(part: ClientPart, scenario: Scenario) -> float:
    """Count what a client computes for each sample that a head sees to make up features beside it, and learn of them; 0
    where it makes up none. Leaves the part as it is."""
    settings, found = scenario.training.client.fraug, part.generator
    if settings is None or found is None:
        return 0.0
    generator, owner = found
    generator, head = deepcopy(generator), deepcopy(owner.last_head)
    of_head = {id(one) for one in owner.last_head.parameters()}
    apart = isinstance(owner, Front) and owner.exits is not None and owner.exits.apart
    asked = any(one.requires_grad and id(one) not in of_head for one in part.parameters()) and not apart
    made = Fraug(settings, generator, head, Key(0), 0.5, {})
    samples = torch.zeros(_SAMPLES, head.in_features, device=head.weight.device, requires_grad=asked)
    with made.watching():
        head(samples)
    with _counting() as counter:
        loss = made.beside(torch.zeros(_SAMPLES, dtype=torch.int64, device=samples.device), 0)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
    return counter.get_total_flops() / _SAMPLES


def _count_whole(parts: Parts, cut: Cut, image_size: int, examples: int, key: Key, made: float) -> Operations:
    with keyed_rng(key.at("operations", "sample"), cut.device):
        front, front_forward = _sample(parts.front, (3, image_size, image_size), cut.device, inner=False)
        shape, asked = (cut.geometry.tokens, cut.geometry.width), _learns(parts.front)
        back, back_forward = _sample(parts.back, shape, cut.device, inner=asked)
    for part in parts:
        part.zero_grad(set_to_none=True)
    found = Operations(front, 0, 0, 0, 0, examples, back + made, back + made, front_forward, back_forward)
    if (adapted := _adapted(parts, cut, (front, front_forward), (back, back_forward))) is None:
        return found
    return replace(
        found, front=adapted.front, tail=adapted.back + made, front_forward=adapted.front_forward,
        back_forward=adapted.back_forward, plain_front=front, adaptive=adapted,
    )  # fmt: skip


def _adapted(
    parts: Parts, cut: Cut, front: tuple[int, int], back: tuple[int, int], left: int | None = None
) -> Expected | None:
    """Return what is to be expected of a model whose blocks have budgets, from the operations of a step and of a
    forward pass at either side with all blocks and tokens; None where they have none. So many tokens are `left` that
    enter the back (None: as the front passes them on)."""
    found = adaptives(*parts)
    if not found:
        return None
    geometry = cut.geometry
    tokens, prefix = geometry.tokens, geometry.prefix
    made = [
        PassOperations(part.blocks, geometry.width, tokens, *counted)
        for part, counted in zip(parts[:2], (front, back), strict=True)
    ]
    _, first = found[0].settings.left(geometry)
    return expected(found[0], found[1], made[0], made[1], tokens, left or prefix + first, prefix)


def _count_split(
    parts: Parts, cut: Cut, image_size: int, examples: int, key: Key, made: tuple[float, float]
) -> Operations:  # fmt: skip
    (front, back, tail), geometry = parts, cut.geometry
    _crossing(cut, front.encoder, back.decoder, examples, key)  # the first does what a run does once, as drawing keys
    reducing, restoring, restored = _crossing(cut, front.encoder, back.decoder, examples, key)
    whole, asked = (geometry.tokens, geometry.width), _learns(front) or _learns(back.decoder)
    with keyed_rng(key.at("operations", "sample"), cut.device):
        at_front, front_forward = _sample(front, (3, image_size, image_size), cut.device, inner=False)
        plain = [_sample(part, whole, cut.device, inner=asked) for part in (back, tail)]
        left = plain
        if restored[1:] != whole:
            left = [_sample(part, restored[1:], cut.device, inner=asked) for part in (back, tail)]
    for part in parts:
        part.zero_grad(set_to_none=True)
    share = restored[0] / examples
    (at_back, back_forward), (at_tail, _) = left
    found = Operations(
        at_front + made[0], reducing / examples, at_back * share, restoring / examples, plain[0][0], examples,
        (at_tail + made[1]) * share, plain[1][0] + made[1], front_forward, back_forward * share, making_up=made[0],
    )  # fmt: skip
    if (adapted := _adapted(parts, cut, (at_front, front_forward), plain[0], restored[1])) is None:
        return found
    often = made[0] * adapted.learns  # exits learn where the front does
    return replace(
        found, front=adapted.front + often, back=adapted.back, front_forward=adapted.front_forward,
        back_forward=adapted.back_forward, plain_front=found.front, adaptive=adapted, making_up=often,
    )  # fmt: skip


def pass_operations(part: Front | Back, geometry: Geometry, image_size: int) -> PassOperations:
    """Return what counts the passes of a part whose blocks have budgets, on its device; leaves it as it is."""
    inner, device = isinstance(part, Back), next(part.parameters()).device
    shape = (geometry.tokens, geometry.width) if inner else (3, image_size, image_size)
    with keyed_rng(Key(0), device):
        counted = _sample(deepcopy(part), shape, device, inner=inner)
    return PassOperations(part.blocks, geometry.width, geometry.tokens, *counted)


def adapted_operations(
    part: ClientPart, geometry: Geometry, scenario: Scenario, known: dict[str, PassOperations], beside: int
) -> float | None:
    """Return what a client has computed for an image since its tallies began, in parts whose blocks have budgets; None
    where none have. What counts them is made once and `known` from then on. Features were made up `beside` so many
    samples."""
    found = []
    for one in (part.front, part.beside):
        for adaptive in adaptives(one):
            if adaptive.side not in known:
                known[adaptive.side] = pass_operations(one, geometry, scenario.model.image_size)  # type: ignore[arg-type]
            found.append(adaptive.tally.operations(known[adaptive.side]))
    told = [one for one in found if one is not None]
    if not told:
        return None
    images = adaptives(part.front)[0].tally.images
    return sum(told) + (making_up(part, scenario) * beside / images if beside else 0.0)


def count_net(net: nn.Module, cut: Cut, key: Key, again: bool = False) -> tuple[int, int]:
    """Count a step of a net that takes one image's activations at the cut, and is passed `again` on the way back, and
    its forward pass alone."""
    with keyed_rng(key.at("operations", "net"), cut.device):
        step, forward = _sample(net, (cut.geometry.tokens, cut.geometry.width), cut.device, inner=True)
    return step + again * forward, forward


def _sample(module: nn.Module, shape: tuple[int, ...], device: torch.device, *, inner: bool) -> tuple[int, int]:
    """Count a forward and a backward pass of one sample, which every other one takes too, and the forward pass alone;
    `inner` ones give their gradient to a half before. Exits that are trained with a module take part in what is more
    than that."""
    given = torch.randn(1, *shape, device=device, requires_grad=inner)
    with sdpa_kernel(SDPBackend.MATH), _counting() as counter, watching(module) as seen:
        made = module(given)
        forward = counter.get_total_flops()
        label = torch.zeros(1, dtype=torch.int64, device=device)
        losses = [exits.loss(seen, label) for exits in exits_of(module)]
        ends = [one for one in (made, *losses) if one.requires_grad]  # of what is frozen nothing goes back
        torch.autograd.backward(ends, [torch.ones_like(one) for one in ends])
    return counter.get_total_flops(), forward


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _crossing(
    cut: Cut, encoder: nn.Module, decoder: nn.Module, examples: int, key: Key
) -> tuple[int, int, tuple[int, ...]]:
    """Count both halves of the reducer, and the codecs, on random activations; return the client's and the server's
    operations, and the shape of what enters the back."""
    batch = RandomBatch(examples, cut.geometry, key.at("operations"), cut.device)
    frames, found = cut.rehearse(batch, key, encoder, decoder), {"up": 0, "down": 0}
    while True:
        with _counting() as counter:
            try:
                direction, _ = next(frames)
            except StopIteration as end:
                return found["up"] + counter.get_total_flops(), found["down"], tuple(end.value)
        found[direction] += counter.get_total_flops()  # of who sends it


def _complex(shape: tuple[int, ...], dims: list[int], *_: Any, **__: Any) -> int:
    return round(5 * prod(shape) * log2(prod(shape[dim] for dim in dims)))


def _from_real(shape: tuple[int, ...], dims: list[int], *_: Any, **__: Any) -> int:
    return _complex(shape, dims) // 2


def _to_real(_: tuple[int, ...], dims: list[int], *__: Any, out_shape: tuple[int, ...], **___: Any) -> int:
    return _complex(out_shape, dims) // 2


_FOURIER: dict[Any, Any] = {
    torch.ops.aten._fft_c2c: _complex, torch.ops.aten._fft_r2c: _from_real, torch.ops.aten._fft_c2r: _to_real,
}  # fmt: skip


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False, custom_mapping=_FOURIER) as counter:
        yield counter
