"""Exits as part of a model: what they see, what goes back through them, and how their settings are told."""

import pytest
import torch
from models import shaken, small
from torch import nn

from splitfed.errors import ScenarioError
from splitfed.model.exits.heads import Exits, beside, clipped_together, joined, watching
from splitfed.model.exits.settings import ExitsConfig
from splitfed.model.parts import Back, Front, split, whole_state
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.auxiliary import Auxiliary

IMAGES = torch.randn(4, 3, 16, 16, generator=Key(0).generator())
LABELS = torch.tensor([0, 1, 2, 3])


def parted(**settings: object) -> tuple[Front, Back]:
    """Return a model of three blocks, cut after the second, with an exit at each side."""
    front, back = split(shaken(small()), 2)
    for part, blocks in ((front, (1, 2)), (back, ())):
        if blocks:
            config = ExitsConfig(blocks=blocks, **settings)
            part.exits = Exits(blocks, 24, 5, 1, key=Key(1).at(blocks[0]), settings=config, heads=config.heads)
    return front, back


def test_what_they_see_is_what_their_block_made_normalised() -> None:
    front, _ = parted()
    made: list[torch.Tensor] = []
    for block in front.blocks:
        block.register_forward_hook(lambda _, __, tokens: made.append(tokens))
    with watching(front) as seen, torch.no_grad():
        assert front(IMAGES).equal(made[-1])
    for block, tokens in enumerate(made, 1):
        expected = torch.cat([nn.functional.layer_norm(one, (24,)) for one in (tokens[:, 0], tokens[:, 1:].mean(1))], 1)
        assert torch.allclose(seen[block], expected, atol=1e-6)
    front(IMAGES[:2])
    assert len(seen[1]) == 4  # nobody watches any more


def test_a_loss_beside_a_tensor_comes_back_with_its_gradient() -> None:
    front, _ = parted(weight=0.3)
    gradient = torch.randn(4, 17, 24, generator=Key(2).generator())
    made, loss = front.learning(1, LABELS, IMAGES)
    assert loss is not None
    beside(made, loss).backward(gradient)
    found = {name: one.grad.clone() for name, one in front.named_parameters() if one.grad is not None}
    front.zero_grad()
    made, loss = front.learning(1, LABELS, IMAGES)
    assert loss is not None
    ((made * gradient).sum() + loss).backward()
    expected = {name: one.grad for name, one in front.named_parameters() if one.grad is not None}
    assert found.keys() == expected.keys() >= {"exits.outputs.1.weight", "blocks.0.attn.qkv.weight"}
    assert all(torch.allclose(found[name], one, atol=1e-5) for name, one in expected.items())


def test_mixed_exits_learn_after_so_many_rounds() -> None:
    front, back = parted(regime="mixed", after=3)
    assert front.learning(3, LABELS, IMAGES)[1] is None
    assert front.learning(4, LABELS, IMAGES)[1] is not None
    assert back.learning(4, LABELS, front(IMAGES))[1] is None  # it has none


def test_what_learns_nothing_from_its_exits_is_clipped_without_them() -> None:
    front, _ = parted(regime="disjoint")
    rest, heads = clipped_together(front)
    assert front.exits is not None
    assert {*map(id, heads)} == {*map(id, front.exits.parameters())}
    assert {*map(id, rest)} | {*map(id, heads)} == {*map(id, front.parameters())}
    assert len(clipped_together(parted()[0])) == 1


def test_exits_of_both_sides_are_one_that_shares_their_heads() -> None:
    front, back = parted()
    config = ExitsConfig(blocks=(3,))
    back.exits = Exits((3,), 24, 5, 1, key=Key(7), settings=config)
    assert front.exits is not None
    whole = joined([front.exits, back.exits], 24, 1)
    assert whole.blocks == (1, 2, 3)
    assert {f"exits.{name}" for name in whole.state_dict()} == {n for n in whole_state(front, back) if "exits" in n}
    assert [*whole.parameters()][-1] is [*back.exits.parameters()][-1]


def test_what_stands_in_for_a_back_has_no_exits() -> None:
    _, back = parted()
    back.exits = Exits((3,), 24, 5, 1, key=Key(7), settings=ExitsConfig(blocks=(3,)))
    assert not [name for name in Auxiliary(back, 1, 1).state_dict() if "exits" in name]
    assert back.exits is not None


@pytest.mark.parametrize(
    ("exits", "why"),
    [
        ("{blocks: []}", "blocks: must have at least 1"),
        ("{blocks: [0]}", "must be greater than 0"),
        ("{blocks: [1, 1]}", "blocks: name each block once"),
        ("{blocks: [1], regime: mixed}", "after: is missing: for how many rounds"),
        ("{blocks: [1], after: 2}", "after: with regime: joint no rounds come before: leave it out"),
        ("{blocks: [1], weight: -1.0}", "weight: must be"),
        ("{heads: linear}", "blocks: is missing"),
    ],
)
def test_settings_that_say_nothing_sensible_are_refused(exits: str, why: str) -> None:
    text = f"model: {{name: m, cut: 1, image_size: 8, exits: {exits}}}\ndata: {{path: digits}}\n"
    with pytest.raises(ScenarioError) as caught:
        Scenario.parse(text + "federation: {clients: 2, rounds: 3}")
    assert any(problem.startswith("<text>:1: model.exits") and why in problem for problem in caught.value.problems)
