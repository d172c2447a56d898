"""The parts that a Vision Transformer of timm is cut into: the front that a client holds and the back that the server
holds; with private labels also the tail, which is the client's too.

Parts keep timm's names and share the model's parameters: the union of their state dicts is the timm checkpoint.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.trained.layers import ENCODER, GATES, Gates, Halves
from splitfed.errors import ModelError
from splitfed.model.adaptive.alast import Adaptive
from splitfed.model.exits.fraug import Generator
from splitfed.model.exits.heads import Exits, watching
from splitfed.model.forward import suit_attention

_FRONT_PARTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "pos_drop", "patch_drop", "norm_pre")


CANNOT_BE_CUT = "is not a Vision Transformer of timm that can be cut: 'splitfed list models' shows those that are"
# More would be an attention of billions of pairs, and a frame of gigabytes.
_MOST_TOKENS = 1 << 16


def misfits(vit: nn.Module, cut: int, tail: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield why `vit` cannot be cut after block `cut`, and with a `tail` of so many blocks once more, and still be the
    same model: the scenario's key, and the reason."""
    if type(vit) is not VisionTransformer:
        # subclasses have forwards of their own, which the two halves would not follow
        yield "model.name", f"a {type(vit).__name__} {CANNOT_BE_CUT}"
        return
    if not vit.has_class_token:
        yield "model.args.class_token", f"a model without a class token {CANNOT_BE_CUT}"
    if not isinstance(vit.patch_drop, nn.Identity):
        yield (
            "model.args.patch_drop_rate",
            "a front that drops patches at random has no fixed number of tokens: leave it out",
        )
    if not vit.global_pool:
        yield "model.args.global_pool", "a model without pooling gives no logits per image: 'token' and 'avg' do"
    yield from _lost_pixels(vit)
    blocks = len(vit.blocks)
    if not 1 <= cut <= blocks:
        yield "model.cut", f"is {cut}, but the model has blocks 1 to {blocks}"
    elif tail is not None and tail >= blocks:
        yield "model.tail", f"is {tail}, but the model has {blocks} blocks, of which front and server need one each"
    elif tail is not None and cut + tail >= blocks:
        end = f"{tail} {'block' if tail == 1 else 'blocks'}"
        yield (
            "model.cut",
            f"is {cut} and the tail has {end}, which leaves the server none of the model's {blocks}: lower it or "
            "model.tail",
        )


def _lost_pixels(vit: VisionTransformer) -> Iterator[tuple[str, str]]:
    """Yield why the patches are not all of the image: timm passes over what is left at its right and lower edge."""
    embed = vit.patch_embed
    if not isinstance(embed, PatchEmbed):
        return  # behind a network of convolutions, which takes all pixels or cannot be built
    for size, patch in zip(embed.img_size, embed.patch_size, strict=True):
        if size % patch or size < patch:
            near = [str(n) for n in (size // patch * patch, -(-size // patch) * patch) if n]
            patches = [str(n) for n in range(1, min(size, 64) + 1) if size % n == 0]
            yield (
                "model.args.patch_size",
                f"images of {size} pixels cannot be divided into patches of {patch}: image_size {' or '.join(near)} "
                f"fits, or args.patch_size {', '.join(patches)}",
            )
            return
    if embed.num_patches > _MOST_TOKENS:
        yield (
            "model.args.patch_size",
            f"an image of {embed.num_patches:,} patches is more than a model can take, {_MOST_TOKENS:,}: make "
            "images smaller or patches larger",
        )


def check(vit: nn.Module, cut: int, tail: int | None = None) -> None:
    """Raise ModelError, with key and reason, unless `vit` can be cut as `misfits` says."""
    for key, why in misfits(vit, cut, tail):
        raise ModelError(f"{key}: {why}")


class Part(VisionTransformer):
    """Some parts of a built VisionTransformer under their own names, run by timm's own forward code. `exits` are those
    after its blocks that are trained with it, None where there are none; the forward pass leaves them out. `side` says
    on which side of the cut it is: `front`, or `back` whatever follows it. `adaptive` runs the blocks of a
    mini-batch of training that has begun with it; None where all are trained as ever. `stays` are the names of the
    parameters that each client has of its own, and that never come together; a `generator` makes up features for the
    head that is here, where a client has one do so."""

    side = "back"
    _frozen: frozenset[str]
    exits: Exits | None
    adaptive: Adaptive | None
    generator: Generator | None
    stays: frozenset[str]

    def __init__(self, vit: VisionTransformer, parts: list[str], first: int, last: int) -> None:
        nn.Module.__init__(self)  # not VisionTransformer's, which would make a whole model
        for name, value in vit.__dict__.items():
            if name not in self.__dict__:
                setattr(self, name, value)
        numbered = [(name, block) for name, block in vit.blocks.named_children() if first <= int(name) < last]
        for name in parts:
            setattr(self, name, nn.Sequential(OrderedDict(numbered)) if name == "blocks" else getattr(vit, name))
        self.exits = self.adaptive = self.generator = None
        self._frozen = self.stays = frozenset()
        self.train(vit.training)

    @property
    def _adapts(self) -> bool:
        """Whether the pass that comes is one of training that has begun with its blocks' budgets."""
        return self.training and self.adaptive is not None and self.adaptive.begun

    def after(self, block: int) -> nn.Module:
        """Return what makes the output of a block, whose number is the whole model's, from 1 on."""
        return self.blocks.get_submodule(str(block - 1))

    @property
    def last_head(self) -> Any:
        """The linear layer that answers after the last of these blocks that has one."""
        return self.head

    def freeze(self) -> None:
        """Let all that is not trained travel no more; before exits and a reducer's layers are attached."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self._frozen = frozenset(self.state_dict()) - trained

    def keep_norms(self) -> None:
        """Let the LayerNorms, their scales and shifts, be each client's own; before a reducer's layers are attached."""
        self.stays = frozenset(
            f"{name}.{own}" for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)
            for own, parameter in module.named_parameters() if parameter.requires_grad
        )  # fmt: skip

    def frozen(self) -> dict[str, Tensor]:
        """Return what clients are sent once: what an adapter has frozen, and what norms of their own begin with."""
        return {name: tensor for name, tensor in self.state_dict().items() if name in self._frozen | self.stays}

    def own(self) -> dict[str, Tensor]:
        """Return what is each client's own, and stays with it from round to round."""
        return {name: tensor for name, tensor in self.state_dict().items() if name in self.stays}

    def travelling(self) -> dict[str, Tensor]:
        """Return the tensors that a round may change, and that go out and come back where a client holds this."""
        return {name: tensor for name, tensor in self.state_dict().items() if name not in self._frozen | self.stays}

    def load_travelling(self, weights: dict[str, Tensor]) -> None:
        """Take over, by copy, what came; the rest stays as it is."""
        self.load_state_dict({**self.state_dict(), **weights})

    def learning(self, round: int, targets: Tensor, *given: Any) -> tuple[Tensor, Tensor | None]:
        """Return what a forward pass makes of what is given, and the loss of the exits on it that joins the model's in
        a round; None where there are none, or they learn nothing yet."""
        if self.exits is None or not self.exits.learn(round):
            return self(*given), None
        # Looked at afterwards: a block that is computed again, when nobody watches, saves what it saved before.
        with watching(self) as seen:
            made = self(*given)
        return made, self.exits.loss(seen, targets)


class _Again(nn.Module):
    """A block that is computed again on the way back, as timm's own forward does with `grad_checkpointing`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return checkpoint(self.block, tokens, attn_mask, use_reentrant=False)


class Front(Part):
    """The client's half: patch embedding, prefix tokens and the first blocks, images to activations `[B, n, D]`.

    `encoder`, which the forward pass leaves out, is the client's half of a reducer with layers of its own, else the
    identity. `gates`, where a reducer has brought some, run the blocks. With timm's `grad_checkpointing` these are
    computed again on the way back.
    """

    side = "front"
    gates: Gates | None

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__(vit, [*_FRONT_PARTS, "blocks"], 0, cut)
        self.norm = nn.Identity()
        self.encoder: nn.Module = nn.Identity()
        self.gates = None
        self._encoder_travels = True

    def forward(self, images: Tensor, budget: float | Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Turn images `[B, 3, H, W]` into activations at the cut, `[B, n, D]`. With `gates`, the rows of tokens that
        they close are zeros, and `budget` is the share of patch tokens that they let through, in (0, 1], of all samples
        or of each, `[B]`; None is their own."""
        if self.adaptive is not None and self._adapts:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.adaptive.embeds):
                tokens = self._embed(images)
            return self.adaptive.through(tokens, self.blocks, self.num_prefix_tokens, again=self.grad_checkpointing)
        if self.gates is None:
            return self.forward_features(images)
        tokens = self._embed(images)
        blocks = [_Again(block) for block in self.blocks] if self.grad_checkpointing else list(self.blocks)
        return self.gates(tokens, blocks, budget)

    def _embed(self, images: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(images))))

    @property
    def last_head(self) -> Any:
        """The linear layer that answers after the last of these blocks that has one."""
        assert self.exits is not None
        return self.exits.outputs[str(self.exits.blocks[-1])]

    def after(self, block: int) -> nn.Module:
        """Return what makes the output of a block; of the last one it is the front, as gates may stand behind it."""
        return self if block == len(self.blocks) else super().after(block)

    def upto(self, cut: int) -> "Front":
        """Return the front of so many blocks, which has its parameters from this one, of as many or more."""
        if cut == len(self.blocks):
            return self
        front = Front(self, cut)
        front.exits, front.encoder, front.gates = self.exits, self.encoder, self.gates
        front._encoder_travels, front._frozen = self._encoder_travels, self._frozen
        return front

    def geometry(self, batch: int, classes: int) -> Geometry:
        """Return the sizes at the cut for batches of up to `batch` images."""
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        return Geometry(batch, tokens, self.embed_dim, self.num_prefix_tokens, classes, len(self.blocks))

    def attach(self, halves: Halves) -> None:
        """Take a reducer's encoder in, and its gates."""
        self.encoder = halves.encoder.requires_grad_(halves.trained)
        if halves.gates is not None:
            self.gates = halves.gates.requires_grad_(halves.trained).train(self.training)
        self._encoder_travels = halves.encoder_travels

    def travelling(self) -> dict[str, Tensor]:
        """Return the tensors that go out and come back in each round: all but an encoder that is frozen or a client's
        own, what an adapter has frozen, and norms of a client's own."""
        stays = (ENCODER, GATES) if not self._encoder_travels else ()
        return {name: tensor for name, tensor in super().travelling().items() if not name.startswith(stays)}


class Later(Part):
    """Blocks that go on with another part's activations; those that end the model have its final norm and head."""

    def __init__(self, vit: VisionTransformer, first: int, last: int, ends: bool) -> None:
        names = [name for name, _ in vit.named_children() if name not in _FRONT_PARTS] if ends else ["blocks"]
        super().__init__(vit, names, first, last)
        for name in ("patch_embed", "patch_drop", "norm_pre", *(() if ends else ("norm",))):
            setattr(self, name, nn.Identity())
        self._ends = ends
        self.ragged = False  # whether rows of zeros stand for no token

    def _pos_embed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, activations: Tensor) -> Tensor:  # type: ignore[override]
        """Turn activations `[B, k, D]` into logits `[B, classes]`, or where a tail follows into its input, `[B, k, D]`.
        Prefix tokens come first, any may follow them. Where it is `ragged`, nothing attends to rows of zeros, which
        stand for no token: they come out as zeros, or are not pooled."""
        if self.adaptive is not None and self._adapts:
            features = self.norm(self.adaptive.through(activations, self.blocks, self.num_prefix_tokens))
            return self.forward_head(features) if self._ends else features
        here = self._here(activations) if self.ragged else None
        if here is None:
            features = self.forward_features(activations)
            return self.forward_head(features) if self._ends else features
        features = self.forward_features(activations, attn_mask=here[:, None, None])
        if not self._ends:
            return features * here.unsqueeze(-1)
        if self.global_pool == "token":
            return self.forward_head(features)
        samples = zip(features, here, strict=True)  # whatever the pooling, a sample alone has nothing else to pool
        return torch.cat([self.forward_head(sample[own].unsqueeze(0)) for sample, own in samples])

    def _here(self, activations: Tensor) -> Tensor | None:
        """Tell which rows are tokens, bool `[B, k]`; None where all are."""
        here = activations.detach().ne(0).any(-1)
        here[:, : self.num_prefix_tokens] = True  # or, of zeros alone, there would be nothing to attend to
        return None if bool(here.all()) else here


class Back(Later):
    """The server's part: the blocks after the cut, with the final norm and the head, unless a tail has these.

    `decoder`, which the forward pass leaves out, is the server's half of a reducer with layers of its own, else the
    identity.
    """

    def __init__(self, vit: VisionTransformer, cut: int, tail: int | None = None) -> None:
        last = _numbers(vit)[-1] + 1
        super().__init__(vit, cut, last - (tail or 0), ends=tail is None)
        self.decoder: nn.Module = nn.Identity()

    def since(self, cut: int) -> "Back":
        """Return what of the back follows a front of so many blocks, with its parameters from this one."""
        if [cut] == _numbers(self)[:1] or not len(self.blocks):
            return self
        back = Back(self, cut, None if self._ends else 0)
        back.exits, back.decoder, back.ragged = self.exits, self.decoder, self.ragged
        return back

    def attach(self, halves: Halves) -> None:
        """Take a reducer's decoder in."""
        self.decoder = halves.decoder.requires_grad_(halves.trained)


class Tail(Later):
    """What a client holds of the end of the model where labels stay with it: the last blocks, final norm and head."""

    def __init__(self, vit: VisionTransformer, blocks: int) -> None:
        super().__init__(vit, len(vit.blocks) - blocks, len(vit.blocks), ends=True)


class Whole(nn.Sequential):
    """A front, and what follows it."""

    def forward(self, images: Tensor, budget: float | Tensor | None = None) -> Tensor:
        """Turn images `[B, 3, H, W]` into logits `[B, classes]`; `budget` is what `Front.forward` takes."""
        front, *later = self
        made = front(images, budget)
        for part in later:
            made = part(made)
        return made


class Parts(NamedTuple):
    """A model in parts; `tail` is the identity where the back ends the model."""

    front: Front
    back: Back
    tail: nn.Module

    def whole(self) -> "Whole":
        """Return the model in one piece, images to logits, through a reducer's own layers."""
        return Whole(self.front, self.front.encoder, self.back.decoder, self.back, self.tail)

    def to(self, device: torch.device, precision: str = "float32") -> "Parts":
        """Move the parameters to a device, in place, to be computed with in this precision there."""
        for part in self:
            suit_attention(part, precision, device)
        return Parts(self.front.to(device), self.back.to(device), self.tail.to(device))

    def at(self, cut: int) -> "Parts":
        """Return the model cut after so many blocks, with its parameters from these parts: where front and back have
        some blocks both, as clients' cuts differ, they then have each block once."""
        return Parts(self.front.upto(cut), self.back.since(cut), self.tail)


def block_of(name: str) -> int | None:
    """Return the number, from 1 on, of the block that a tensor of this name belongs to; None for one of no block."""
    section, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) + 1 if section == "blocks" else None


def _numbers(vit: VisionTransformer) -> list[int]:
    """Return the numbers of the blocks that a model or a part of one has, as timm names them, from 0 on."""
    return [int(name) for name, _ in vit.blocks.named_children()]


def split(vit: VisionTransformer, cut: int) -> tuple[Front, Back]:
    """Cut a model after `cut` blocks; the halves share its parameters. Raises ModelError as `check` does."""
    check(vit, cut)
    return Front(vit, cut), Back(vit, cut)


def split_twice(vit: VisionTransformer, cut: int, tail: int) -> tuple[Front, Back, Tail]:
    """Cut a model after `cut` blocks and before the last `tail` (0: before the final norm); the parts share its
    parameters. Raises ModelError as `check` does."""
    check(vit, cut, tail)
    return Front(vit, cut), Back(vit, cut, tail), Tail(vit, tail)


def whole_state(*parts: nn.Module) -> dict[str, Tensor]:
    """Join the tensors of a model's parts into the state dict of the whole timm model; a reducer's own layers come
    beside it, as `encoder.*` and `decoder.*`, and exits as `exits.*`."""
    return {name: tensor for part in parts for name, tensor in part.state_dict().items()}
