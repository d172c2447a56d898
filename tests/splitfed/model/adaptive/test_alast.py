"""Budgets and passes against a plain loop from the formulas, what a mini-batch leaves as it was, and how blocks are
drawn."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from splitfed.model.adaptive.alast import Adaptive, Numbers, budgets_of, give_budgets
from splitfed.model.adaptive.settings import AlastConfig
from splitfed.model.parts import VisionTransformer, split
from splitfed.seeds import Key
from splitfed.split.computing.operations import pass_operations

DEPTH, CUT = 4, 2


def parts(**settings):
    """A small model that is cut, both halves in training, with budgets of these settings."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=DEPTH, num_heads=2, num_classes=3, reg_tokens=1
    )
    front, back = split(vit.train(), CUT)
    config = AlastConfig(**{"kind": "alast", "trained": {"front": 1, "back": 1}, **settings})
    numbers = Numbers(config, CUT, DEPTH - CUT, Key(7))
    front.adaptive, back.adaptive = Adaptive(numbers, "front", CUT), Adaptive(numbers, "back", DEPTH - CUT)
    return front, back


def learn(front, back, step: int, images: Tensor) -> Tensor:
    """Pass a mini-batch through both halves and take the gradient of its loss; return the tokens at the cut."""
    front.adaptive.begin(1, 0, step, Key(1).at(step))
    back.adaptive.begin(1, 0, step, Key(2).at(step))
    made = front(images)
    nn.functional.cross_entropy(back(made), torch.arange(len(images)) % 3).backward()
    front.adaptive.commit()
    back.adaptive.commit()
    return made


def attention_of_the_class_token(block, tokens: Tensor) -> Tensor:
    """Of each head and token, from the formula."""
    n, attn = tokens.shape[1], block.attn
    q, k, _ = attn.qkv(block.norm1(tokens)).view(len(tokens), n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q[:, :, :1] @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.softmax(-1)[:, :, 0].mean(1)


def test_passes_and_budgets_are_those_of_a_plain_loop():
    front, back = parts(alpha=0.3, low=0.4, start=0.8)
    blocks, prefix = [*front.blocks, *back.blocks], front.num_prefix_tokens
    budgets, changes = [0.8] * DEPTH, [0.0] * DEPTH
    for step in range(1, 5):
        images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * step
        embedded: list[Tensor] = []
        hook = front.blocks[0].register_forward_pre_hook(lambda _, given, put=embedded.append: put(given[0].detach()))
        made = learn(front, back, step, images)
        hook.remove()
        with torch.no_grad():
            samples = list(embedded[0].split(1))
            where = [list(range(samples[0].shape[1])) for _ in samples]
            for i, block in enumerate(blocks):
                patches = samples[0].shape[1] - prefix
                count, squares = max(1, math.floor(budgets[i] * patches)), 0.0
                for b, tokens in enumerate(samples):
                    after = block(tokens)
                    squares += float((after[0, 0] - tokens[0, 0]).square().sum())
                    seen = attention_of_the_class_token(block, tokens)[0, prefix:]
                    best = sorted(sorted(range(patches), key=lambda p, s=seen: -float(s[p]))[:count])
                    kept = [*range(prefix), *(prefix + p for p in best)]
                    samples[b], where[b] = after[:, kept], [where[b][p] for p in kept]
                change = squares / len(images)
                budgets[i] = min(1.0, max(0.4, budgets[i] + 0.3 * (change - changes[i])))
                changes[i] = change
                if i == CUT - 1:
                    assert torch.allclose(made, torch.cat(samples), atol=1e-5)
                    assert front.adaptive.last.positions.tolist() == where
                    where = [list(range(samples[0].shape[1])) for _ in samples]
        found = budgets_of([front.adaptive, back.adaptive])
        torch.testing.assert_close(
            torch.cat([found["front/budgets"], found["back/budgets"]]),
            torch.tensor(budgets).double(),
            atol=1e-4,
            rtol=0,
        )
        assert back.adaptive.last.positions.tolist() == where
        assert all(len(set(kept)) == len(kept) for kept in where)
    assert any(0.4 < one < 1 for one in budgets)  # or nothing but the bounds was tried


@pytest.mark.parametrize("choice", ["draw", "highest"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_that_were_not_chosen_stay_bit_for_bit_with_moments_and_decay(choice, checkpointing):
    front, back = parts(choice=choice, trained={"front": 1, "back": 1}, alpha=1.0)
    front.set_grad_checkpointing(checkpointing)
    optimiser = torch.optim.AdamW([*front.parameters(), *back.parameters()], lr=1e-2, weight_decay=0.1)
    blocks, moved = {"front": front.blocks, "back": back.blocks}, Counter()
    for step in range(1, 13):
        before = {n: t.clone() for part in (front, back) for n, t in part.state_dict().items()}
        learn(front, back, step, torch.randn(4, 3, 16, 16))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        for side, part in (("front", front), ("back", back)):
            for place, block in enumerate(blocks[side]):
                number = place + (0 if side == "front" else CUT)
                same = all(t.equal(before[f"blocks.{number}.{n}"]) for n, t in block.state_dict().items())
                assert same == (place not in part.adaptive.last.trained)
                moved[number] += not same
        assert not back.head.weight.equal(before["head.weight"])
        assert not front.cls_token.equal(before["cls_token"])
    assert sum(moved.values()) == 12 * 2
    assert choice == "highest" or len(moved) == DEPTH


def test_checkpointing_changes_no_gradient():
    found = []
    for again in (False, True):
        front, back = parts(trained={"front": 2, "back": 1})
        front.set_grad_checkpointing(again)
        learn(front, back, 1, torch.ones(2, 3, 16, 16))
        found.append([p.grad for p in front.parameters()])
    assert all(one is None if other is None else one.equal(other) for one, other in zip(*found, strict=True))


def test_nothing_is_kept_for_the_way_back_below_the_lowest_block_that_trains():
    front, back = parts(embedding="never", choice="highest", trained={"front": 1, "back": 2}, alpha=0)
    front.adaptive.load_state_dict({"budgets": torch.tensor([0.6, 0.9]), "changes": torch.zeros(2)})
    seen = []
    for block in front.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].requires_grad))
    learn(front, back, 1, torch.randn(2, 3, 16, 16))
    assert seen == [False, False]
    assert all(p.grad is None for n, p in front.named_parameters() if not n.startswith("blocks.1."))
    assert all(p.grad is not None for p in front.blocks[1].parameters())


def test_the_embedding_trains_when_it_is_said():
    for embedding, number, trains in (("always", 0, True), ("with_blocks", 0, False), ("with_blocks", 1, True)):
        front, back = parts(embedding=embedding, trained={"front": number, "back": 1})
        assert front.adaptive.numbers.front_learns(1, 0, 1) == trains
        learn(front, back, 1, torch.randn(2, 3, 16, 16))
        assert (front.patch_embed.proj.weight.grad is not None) == trains


def test_in_evaluation_and_without_a_beginning_all_tokens_pass():
    front, back = parts()
    with torch.no_grad():
        assert front(torch.randn(2, 3, 16, 16)).shape[1] == 16 + 2
    before = budgets_of([front.adaptive, back.adaptive])
    front.adaptive.commit()
    after = budgets_of([front.adaptive, back.adaptive])
    assert all(before[name].equal(after[name]) for name in before)


def test_budgets_come_back_bit_for_bit_and_begin_anew_without_any():
    front, back = parts(alpha=0.05)
    for step in (1, 2):
        learn(front, back, step, torch.randn(2, 3, 16, 16))
    kept = budgets_of([front.adaptive, back.adaptive])
    others = parts(alpha=0.05)
    give_budgets(kept, [one.adaptive for one in others])
    found = budgets_of([one.adaptive for one in others])
    assert all(found[name].equal(tensor) for name, tensor in kept.items())
    give_budgets({}, [front.adaptive])
    assert front.adaptive.budgets.tolist() == [0.9] * CUT


def drawn(trained, cut: int = 3, depth: int = 12, draws: int = 2000):
    numbers = Numbers(AlastConfig(kind="alast", trained=trained), cut, depth - cut, Key(3))
    return [numbers.of(1 + step % 5, step % 7, step) for step in range(draws)]


def test_so_many_of_all_blocks_fall_to_the_sides_as_an_even_draw_has_it():
    found = drawn(4)
    assert all(one["front"] + one["back"] == 4 for one in found)
    none = sum(one["front"] == 0 for one in found) / len(found)
    expected = math.comb(9, 4) / math.comb(12, 4)
    assert none == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(found)))
    assert found == drawn(4)


def test_each_side_has_its_own_number_on_average():
    found = drawn({"front": 0.25, "back": 5.5})
    assert {one["back"] for one in drawn({"front": 1}, draws=9)} == {9}
    assert Counter(one["front"] for one in found).keys() == {0, 1}
    assert Counter(one["back"] for one in found).keys() == {5, 6}
    assert sum(one["front"] for one in found) / len(found) == pytest.approx(0.25, abs=0.04)
    assert sum(one["back"] for one in found) / len(found) == pytest.approx(5.5, abs=0.05)


def test_blocks_of_higher_budget_are_drawn_more_often():
    front, _ = parts(alpha=0)
    front.adaptive.load_state_dict({"budgets": torch.tensor([0.5, 1.0]), "changes": torch.zeros(2)})
    chosen: Counter[int] = Counter()
    for step in range(300):
        front.adaptive.begin(1, 0, step, Key(step))
        with torch.no_grad():
            front(torch.zeros(1, 3, 16, 16))
        chosen.update(front.adaptive.last.trained)
    assert chosen[1] / 300 == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.1)


@pytest.mark.parametrize("embedding", ["always", "never"])
def test_operations_of_a_pass_are_those_that_torch_counts(embedding: str):
    """But for a part of the way back through the lowest block, which nothing below it needs."""
    front, _ = parts(embedding=embedding, trained={"front": 1}, alpha=0.5)
    counts = pass_operations(front, front.geometry(4, 3), 16)
    for step in range(1, 5):
        front.adaptive.begin(1, 0, step, Key(step))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made = front(torch.randn(1, 3, 16, 16))
            made.backward(made)
        front.adaptive.commit()
        found, counted = counts(front.adaptive.last.counted(True), front.adaptive), counter.get_total_flops()
        assert found == counted if embedding == "always" else 0.8 * found < counted <= found
