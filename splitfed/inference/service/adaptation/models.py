"""The models that take part in adaptation, each with norms that learn: the run's own, and a teacher from elsewhere."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, log_softmax

from splitfed.data.batches import normaliser
from splitfed.errors import RunError
from splitfed.files import reason
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.adaptation.kept import Kept, pixels
from splitfed.inference.service.adaptation.norms import affine, apart, sharing
from splitfed.inference.service.adaptation.settings import TeacherConfig
from splitfed.model.exits.heads import Exits

_LEAST = 1e-12  # of a probability whose logarithm is taken


class Learning(Protocol):
    """A model whose `norms` learn: it says of samples, by each of its outputs, log probabilities `[B, C]`."""

    norms: dict[str, nn.Parameter]

    def say(self, samples: Sequence[Kept]) -> list[Tensor]: ...

    def copy(self) -> "Learning":
        """Return one that learns by itself from where this one is."""
        ...


class OwnModel:
    """A run's model with norms of its own, those of the back or of the whole; of samples that are images its `exits` in
    the front say something too, and the last to do so is the whole model."""

    def __init__(self, model: RunModel, exits: Exits | None, which: Literal["back", "whole"]) -> None:
        parts, self.norms = apart(model.parts, which)
        self.model = replace(model, parts=parts)
        self._exits, self._which, self._trunk = exits, which, self.model.trunk
        for parameter in self.norms.values():
            parameter.requires_grad_(True)
        self._normalise = normaliser(model.mean, model.std)

    def copy(self) -> "OwnModel":
        """Return one that learns by itself from where this one is."""
        return OwnModel(self.model, self._exits, self._which)

    def say(self, samples: Sequence[Kept]) -> list[Tensor]:
        """Return log probabilities `[B, C]` by each output."""
        if isinstance(samples[0].content, bytes):
            return self._of_images(torch.stack(_images(samples, self.model.scenario.model.image_size)))
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, sample in enumerate(samples):
            groups[sample.block, len(sample.content)].append(place)
        found = []
        for (block, _), places in groups.items():
            tokens = torch.stack([torch.as_tensor(samples[place].content) for place in places])
            found.append(self._trunk.end(self._trunk.go_on(block, tokens.to(self.model.device))))
        order = torch.tensor([place for places in groups.values() for place in places])
        return [log_softmax(torch.cat(found).float(), 1)[order.argsort().to(self.model.device)]]

    def _of_images(self, images: Tensor) -> list[Tensor]:
        trunk, said = self._trunk, []
        logits: list[Tensor] = []
        tokens = trunk.begin(self._normalise(images).to(self.model.device))
        for block in range(1, trunk.cut + 1):
            tokens = trunk.block(block, tokens)
            if self._exits is not None and block in self._exits.blocks:
                before = logits[-1] if logits else None
                logits.append(self._exits.head(len(logits), self._exits.look(tokens), before))
                said.append(self._exits.answer(len(logits) - 1, logits).float().clamp(min=_LEAST).log())
        whole = trunk.end(trunk.go_on(trunk.cut, trunk.cross(tokens)))
        return [*said, log_softmax(whole.float(), 1)]


class OtherModel:
    """A teacher of timm, all of whose norms learn. Images are resized for it, as it was made for another size. Raises
    RunError where it cannot be built, or is not one of so many classes."""

    def __init__(self, settings: TeacherConfig, classes: int, side: int, device: torch.device) -> None:
        import timm
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        try:
            made = timm.create_model(
                settings.name, num_classes=classes, checkpoint_path=settings.weights, **settings.args  # type: ignore[arg-type]
            )  # fmt: skip
            known: dict[str, Any] = dict(getattr(made, "pretrained_cfg", None) or {})
            size = int(settings.args.get("img_size") or known.get("input_size", (3, side, side))[-1])
            made = made.to(device).eval().requires_grad_(False)
            said = made(torch.zeros(1, 3, size, size, device=device))
        except Exception as error:  # timm, torch and safetensors raise all sorts of things
            raise RunError(
                f"--adapt: teacher: {settings.weights} is not of {settings.name} with {classes} classes: "
                f"{reason(error)[:200]}"
            ) from error
        if said.shape != (1, classes):
            raise RunError(f"--adapt: teacher: {settings.name} does not say one of {classes} classes of an image")
        mean, std = known.get("mean", IMAGENET_DEFAULT_MEAN), known.get("std", IMAGENET_DEFAULT_STD)
        self._normalise = normaliser(tuple(mean), tuple(std))
        self._side, self._size, self._device = side, size, device
        self._begin(made)

    def _begin(self, made: nn.Module) -> None:
        self._model, self.norms = made, dict(affine(made))
        if not self.norms:
            raise RunError("--adapt: teacher: its norms are what learns, and it has none")
        for parameter in self.norms.values():
            parameter.requires_grad_(True)

    def copy(self) -> "OtherModel":
        """Return one that learns by itself from where this one is."""
        made = object.__new__(OtherModel)
        made._normalise, made._side, made._size, made._device = self._normalise, self._side, self._size, self._device
        made._begin(sharing(self._model, self.norms.values()))
        return made

    def say(self, samples: Sequence[Kept]) -> list[Tensor]:
        """Return log probabilities `[B, C]`."""
        images = self._normalise(torch.stack(_images(samples, self._side))).to(self._device)
        if self._size != self._side:
            size = (self._size, self._size)
            images = interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return [log_softmax(self._model(images).float(), 1)]


def _images(samples: Sequence[Kept], side: int) -> list[Tensor]:
    return [pixels(sample.content, side) for sample in samples if isinstance(sample.content, bytes)]
