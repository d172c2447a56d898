"""FRAug (arXiv 2205.14900) at a client: beside the features of its images a head learns from features that are made up,
so that it sees more than one client's look.

A generator, which all clients average, makes features of a class; a net of the client's own makes of them what is to be
added to its real features, or to their mean in a class. Nothing of either crosses the cut.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from splitfed.model.optim_settings import FraugConfig
from splitfed.seeds import Key

GENERATOR = "generator."  # how the names of its tensors begin, in the state of the part that has the head
FRAUG = "fraug."  # how the names of what is a client's own begin
_MEANS, _NET = FRAUG + "means", FRAUG + "net."
_MOST_MADE_UP, _MOMENTUM, _MEANS_MOMENTUM = 0.5, 0.5, 0.3


class Generator(nn.Module):
    """Makes features `[B, width]`, as a head sees them, of noise in [0, 1), `[B, latent]`, and of classes `[B, C]`.

    Norms go by the mini-batch alone, of two at least. It learns apart from the part of the model that it lies in.
    """

    def __init__(self, width: int, classes: int, key: Key) -> None:
        super().__init__()
        self.latent, self.classes = max(1, width // 2), classes
        random = key.generator()
        self.layers = nn.Sequential(
            _linear(self.latent + classes, width, random), _norm(width), nn.ReLU(),
            _linear(width, width, random), _norm(width), nn.ReLU(),
        )  # fmt: skip
        self.requires_grad_(False)

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        """Return features of noise and classes."""
        return self.layers(torch.cat([noise, classes], 1))


class Change(nn.Module):
    """A client's own net: makes of generated features and their classes what is added to real ones, `[B, width]`."""

    def __init__(self, width: int, classes: int, key: Key) -> None:
        super().__init__()
        inner, random = max(1, width // 2), key.generator()
        self.layers = nn.Sequential(
            _linear(width + classes, inner, random), _norm(inner), nn.ReLU(),
            _linear(inner, width, random), _norm(width),
        )  # fmt: skip

    def forward(self, generated: Tensor, classes: Tensor) -> Tensor:
        """Return what is added."""
        return self.layers(torch.cat([generated, classes], 1))


class Features:
    """What a head sees of its features in training: nothing else than these."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the head sees of the forward pass that is made meanwhile."""
        yield

    def beside(self, targets: Tensor, *place: int) -> Tensor | float:
        """Return what joins the loss on the mini-batch that was watched, of these targets, at this place."""
        return 0.0


class Fraug(Features):
    """One client's round: q of the head's loss is on features that are made up, (1 - q) on those of images.

    `weight` is that of the head's loss in the whole; `state` is what the client's last round has left. The generator
    learns to make what the head takes for its class, far from the class's mean; the client's own net to make the head
    unsure, by little. Each is a step beside each mini-batch, before the model's own.
    """

    def __init__(
        self, settings: FraugConfig, generator: Generator, head: nn.Linear, key: Key, share: float,
        state: Mapping[str, Tensor], weight: float = 1.0,
    ) -> None:  # fmt: skip
        self._settings, self._generator, self._head, self._key = settings, generator, head, key
        self._share, self._weight = share, weight
        width, classes, device = head.in_features, generator.classes, head.weight.device
        self._net = Change(width, classes, key.at("net"))
        self._means = torch.zeros(classes, width)
        if _MEANS in state:
            self._net.load_state_dict({name: state[_NET + name] for name in self._net.state_dict()})
            self._means.copy_(state[_MEANS])
        self._net, self._means = self._net.to(device), self._means.to(device)
        nets = (generator, self._net)
        self._optimisers = [torch.optim.SGD(list(net.parameters()), settings.lr, _MOMENTUM) for net in nets]
        self._seen: list[Tensor] = []
        self.samples = 0  # beside which features were made up

    def state(self) -> dict[str, Tensor]:
        """Return what the client's next round needs: its net, and the mean features of each class."""
        return {_MEANS: self._means, **{_NET + name: tensor for name, tensor in self._net.state_dict().items()}}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the head sees of the forward pass that is made meanwhile."""
        self._seen = []

        def look(module: nn.Module, given: tuple[Any, ...]) -> None:
            self._seen.append(given[0])

        hook = self._head.register_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()

    def beside(self, targets: Tensor, *place: int) -> Tensor | float:
        """Return what joins the loss on the mini-batch that was watched; nothing of one sample alone. `targets` are
        labels `[B]`, or shares of the classes `[B, C]` where samples were merged."""
        if sum(map(len, self._seen)) < 2:  # the head was not asked, or there is nothing to norm by
            return 0.0
        with torch.autocast(self._means.device.type, enabled=False):
            features, key = torch.cat(self._seen).float(), self._key.at(*place)
            self.samples += len(features)
            made = self._made(features.detach(), self._shares(targets), key)
            with torch.no_grad():
                fakes = [(real + self._net(self._generator(noise, of), of), of) for real, of, noise in made]
            losses = [cross_entropy(self._head(fake), of) for fake, of in fakes]
            joins = self._share * (torch.stack(losses).mean() - cross_entropy(self._head(features), targets))
            with torch.enable_grad():
                self._learn(made)
        return self._weight * joins

    def _made(self, real: Tensor, shares: Tensor, key: Key) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return what is changed, its classes, and the noise for it: the real features, and the means of drawn
        classes."""
        counts = shares.sum(0).unsqueeze(1)
        means = torch.where(counts > 0, shares.T @ real / counts.clamp(min=1e-9), self._means)
        self._means = torch.lerp(self._means, means, _MEANS_MOMENTUM)
        random, device, classes = key.generator(), real.device, self._generator.classes
        drawn = torch.randint(classes, (len(real),), generator=random).to(device)
        noise = torch.rand(2, len(real), self._generator.latent, generator=random).to(device)
        return [(real, shares, noise[0]), (self._means[drawn], one_hot(drawn, classes).float(), noise[1])]

    def _learn(self, made: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        settings, head, (generator, net) = self._settings, self._head, (self._generator, self._net)
        of_generator, of_net = self._optimisers
        (_, (means, of, noise)) = made
        generator.requires_grad_(True)
        generated = generator(noise, of)
        _step(of_generator, cross_entropy(head(generated), of) - settings.apart * mse_loss(generated, means))
        generator.requires_grad_(False)
        losses = []
        for real, of, noise in made:
            changed = real + net(generator(noise, of), of)
            logs = head(changed).log_softmax(1)
            unsure = -(logs.exp() * logs).sum(1).mean()
            losses.append(settings.near * mse_loss(changed, real) - unsure)
        _step(of_net, torch.stack(losses).mean())

    def _shares(self, targets: Tensor) -> Tensor:
        return targets.float() if targets.is_floating_point() else one_hot(targets, self._generator.classes).float()


def share_made_up(settings: FraugConfig, round: int, rounds: int) -> float:
    """Return what share of a head's loss is on features that are made up, in a round of so many: q."""
    return min(_MOST_MADE_UP, math.exp(settings.growth * (round - rounds)))


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    parameters = [one for group in optimiser.param_groups for one in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _norm(width: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, track_running_stats=False)


class _Linear(nn.Linear):
    """A layer whose weights are drawn as torch draws them, but not from its global state."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


def _linear(inputs: int, outputs: int, random: torch.Generator) -> nn.Linear:
    layer = _Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=random)
    return layer
