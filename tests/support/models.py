"""Small Vision Transformers of timm, a scenario's model trained in one piece, and the model that a run came to."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.build import build, pixel_stats
from splitfed.model.settings import ModelConfig
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.assembly import assemble

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


def whole_model(scenario: Scenario) -> dict[str, Tensor]:
    """Train front, encoder, decoder and back as one model, as a plain PyTorch user would."""
    key, training, federation = Key(scenario.seed), scenario.training, scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    parts = assemble(scenario, len(data.classes))
    front, back, _ = parts
    model = parts.whole().train()
    mean, std = pixel_stats(scenario.model)
    server = training.server.optimiser.build([p for p in back.parameters() if p.requires_grad], 0.0)
    for number in range(1, federation.rounds + 1):
        client = training.client.optimiser.build([p for p in front.parameters() if p.requires_grad], 0.0)
        for batch in batches(
            data.train, data.partitions[0], training.batch_size, key.at("batches", number, 0), mean=mean, std=std,
            epochs=1,
        ):  # fmt: skip
            nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
            for optimiser in (client, server):
                optimiser.step()
                optimiser.zero_grad()
    return {**front.state_dict(), **back.state_dict()}


def newest(folder: Path) -> dict[str, Tensor]:
    """Return the model of a run's last checkpoint."""
    (found,) = sorted((folder / "checkpoints").iterdir())[-1:]
    return load_file(found / "model.safetensors")
