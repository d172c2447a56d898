"""Features that are made up: losses and class means against plain formulas, and who learns from what."""

import math

import pytest
import torch
from torch import Tensor, nn

from splitfed.model.exits.fraug import Features, Fraug, Generator, share_made_up
from splitfed.model.optim_settings import FraugConfig
from splitfed.seeds import Key

KEY, WIDTH, CLASSES = Key(2), 6, 3
SETTINGS = FraugConfig(lr=0.1, apart=0.5, near=2.0)


class Case:
    """A head, a generator and a client, with what was drawn for its first mini-batch."""

    def __init__(self, share: float = 0.3, weight: float = 1.0, state=None) -> None:
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(CLASSES, WIDTH, generator=Key(7).generator()))
            self.head.bias.zero_()
        self.generator = Generator(WIDTH, CLASSES, KEY.at("generator"))
        self.made = Fraug(SETTINGS, self.generator, self.head, KEY, share, state or {}, weight)
        self.features = torch.randn(8, WIDTH, generator=Key(8).generator()).requires_grad_()
        self.labels = torch.tensor([0, 1, 0, 1, 0, 1, 1, 1])

    def loss(self, targets: Tensor | None = None, step: int = 1) -> tuple[Tensor, Tensor]:
        """Return the head's own loss, and what joins it."""
        targets = self.labels if targets is None else targets
        with self.made.watching():
            own = nn.functional.cross_entropy(self.head(self.features), targets)
        return own, self.made.beside(targets, 1, 0, step)


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(CLASSES)[labels]


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * scale + shift


def generated(w: dict[str, Tensor], noise: Tensor, of: Tensor) -> Tensor:
    x = torch.cat([noise, of], 1) @ w["layers.0.weight"].T + w["layers.0.bias"]
    x = normed(x, w["layers.1.weight"], w["layers.1.bias"]).clamp(min=0)
    x = x @ w["layers.3.weight"].T + w["layers.3.bias"]
    return normed(x, w["layers.4.weight"], w["layers.4.bias"]).clamp(min=0)


def changed(w: dict[str, Tensor], real: Tensor, made: Tensor, of: Tensor) -> Tensor:
    x = torch.cat([made, of], 1) @ w["layers.0.weight"].T + w["layers.0.bias"]
    x = normed(x, w["layers.1.weight"], w["layers.1.bias"]).clamp(min=0)
    x = x @ w["layers.3.weight"].T + w["layers.3.bias"]
    return real + normed(x, w["layers.4.weight"], w["layers.4.bias"])


def surprise(head: nn.Linear, x: Tensor, of: Tensor) -> Tensor:
    """Return the mean cross-entropy of what a head says."""
    logits = x @ head.weight.T + head.bias
    return -(of * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()


def copies(module_state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t.detach().clone().requires_grad_() for n, t in module_state.items()
            if n.startswith(prefix)}  # fmt: skip


@pytest.mark.parametrize("soft", [False, True])
def test_losses_and_steps_are_those_of_the_formulas(soft: bool) -> None:
    case = Case(share=0.3, weight=2.0)
    targets = torch.softmax(torch.randn(8, CLASSES, generator=Key(9).generator()), 1) if soft else case.labels
    of_real = targets if soft else one_hot(targets)
    g = copies(case.generator.state_dict())
    r = copies(case.made.state(), "fraug.net.")
    own, joins = case.loss(targets)

    real = case.features.detach()
    random = KEY.at(1, 0, 1).generator()
    drawn = torch.randint(CLASSES, (8,), generator=random)
    noise = torch.rand(2, 8, WIDTH // 2, generator=random)
    means = torch.zeros(CLASSES, WIDTH)
    for label in range(CLASSES):
        if weight := float(of_real[:, label].sum()):
            means[label] = 0.3 * sum(of_real[i, label] * real[i] for i in range(8)) / weight
    assert torch.allclose(case.made.state()["fraug.means"], means, atol=1e-6)
    both = [(real, of_real, noise[0]), (means[drawn], one_hot(drawn), noise[1])]
    fakes = [(changed(r, x, generated(g, z, of), of), of) for x, of, z in both]
    made_up = sum(surprise(case.head, fake, of) for fake, of in fakes) / 2
    assert torch.isclose(own + joins / 2, 0.7 * own + 0.3 * made_up, atol=1e-5)

    x, of, z = both[1]
    new = generated(g, z, of)
    loss = surprise(case.head, new, of) - SETTINGS.apart * (new - x).square().mean()
    for (name, old), gradient in zip(g.items(), torch.autograd.grad(loss, list(g.values())), strict=True):
        moved = old.detach() - SETTINGS.lr * gradient
        assert torch.allclose(case.generator.state_dict()[name], moved, atol=1e-5), name
        g[name] = moved
    loss = torch.zeros(())
    for x, of, z in both:
        fake = changed(r, x, generated(g, z, of), of)
        shares = (fake @ case.head.weight.T + case.head.bias).softmax(1)
        entropy = -(shares * shares.log()).sum(1).mean()
        loss = loss + (SETTINGS.near * (fake - x).square().mean() - entropy) / 2
    for (name, old), gradient in zip(r.items(), torch.autograd.grad(loss, list(r.values())), strict=True):
        after = case.made.state()["fraug.net." + name]
        assert torch.allclose(after, old.detach() - SETTINGS.lr * gradient, atol=1e-5), name


def test_only_the_head_learns_from_what_is_made_up_and_nets_learn_apart() -> None:
    case = Case(share=0.4)
    own, joins = case.loss()
    (alone,) = torch.autograd.grad(own, case.features, retain_graph=True)
    (own + joins).backward()
    assert torch.allclose(case.features.grad, 0.6 * alone, atol=1e-6)
    assert case.head.weight.grad is not None
    assert all(one.grad is None and not one.requires_grad for one in case.generator.parameters())


def test_the_next_round_goes_on_where_the_last_one_ended() -> None:
    one = Case()
    one.loss()
    other = Case(state=one.made.state())
    other.generator.load_state_dict(one.generator.state_dict())
    assert all(tensor.equal(one.made.state()[name]) for name, tensor in other.made.state().items())
    joins = other.loss(step=2)[1]
    again = Case(state=one.made.state())
    again.generator.load_state_dict(one.generator.state_dict())
    assert torch.equal(again.loss(step=2)[1], joins)
    assert not torch.equal(Case().loss(step=2)[1], joins)


def test_one_sample_alone_and_a_head_that_is_not_asked_make_nothing_up() -> None:
    case = Case()
    before = {name: tensor.clone() for name, tensor in case.generator.state_dict().items()}
    case.features, case.labels = case.features[:1], case.labels[:1]
    assert case.loss()[1] == 0.0
    with case.made.watching():
        pass
    assert case.made.beside(case.labels, 1, 0, 2) == 0.0
    assert all(tensor.equal(before[name]) for name, tensor in case.generator.state_dict().items())
    assert Features().beside(case.labels, 1, 0, 1) == 0.0


def test_the_share_grows_to_a_half() -> None:
    shares = [share_made_up(FraugConfig(growth=0.01), round, 300) for round in (1, 200, 231, 300)]
    assert shares == [pytest.approx(math.exp(-2.99)), pytest.approx(math.exp(-1)), 0.5, 0.5]


def test_nets_are_drawn_from_their_key_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (Generator(WIDTH, CLASSES, key) for key in (KEY, KEY, Key(3)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(tensor.equal(same.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not one.layers[0].weight.equal(other.layers[0].weight)
    assert not list(one.buffers())
