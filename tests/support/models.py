"""Small Vision Transformers of timm."""

import torch

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision
from splitfed.model.build import build
from splitfed.model.settings import ModelConfig
from splitfed.seeds import Key

SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}


def config(cut=1, name="vit_tiny_patch16_224", image_size=16, **more):
    args = {**SMALL, **more.pop("args", {})}
    return ModelConfig(name=name, cut=cut, image_size=image_size, args=args, **more)


def small(classes=5, seed=1, **more):
    return build(config(**more), classes, key=Key(seed))


def shaken(vit):
    # a fresh model is close to constant in its prefix tokens and biases, which would hide mistakes
    with torch.no_grad():
        for i, parameter in enumerate(vit.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=Key(i).generator()), alpha=0.2)
    return vit
