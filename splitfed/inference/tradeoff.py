"""What accuracy costs in bytes and in operations: every image of a split past all exits, and across at every rate.

Everything is measured once, image by image, in frames that hold one; any rule can then be read off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from splitfed.data.batches import batches
from splitfed.data.images import Images
from splitfed.errors import DataError, RunError
from splitfed.inference.asking import Asking
from splitfed.inference.deciding import Measure, Rule, chosen, confidence, routes
from splitfed.inference.exits import Exits, has_exits, heads, operations
from splitfed.inference.rates import Rate
from splitfed.inference.rates import rates as read_rates
from splitfed.inference.run_model import RunModel, Trunk
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.run.origin import load_data
from splitfed.seeds import Key

_Crossed = tuple[bool, int, int, int]


@dataclass(frozen=True)
class Sent:
    """N images that were sent after one block at one rate: which were answered rightly (bool `[N]`), the bytes of each
    request and each answer, and those of the request that are activations (int64 `[N]`)."""

    right: Tensor
    up: Tensor
    down: Tensor
    smashed: Tensor


@dataclass(frozen=True)
class Measured:
    """N images and what became of each: `answers` are the exits' probabilities `[E, N, C]`, `right` tells which they
    answer rightly (bool `[E, N]`), and `whole` which the whole model does where nothing is sent; `sent` is by rate and
    block. `stored` are the mean bytes of an image as it is stored. `operations` are a client's up to each block and its
    exits, `[0]` being the embedding, and `all_operations` those of the whole model with the exits of its front."""

    blocks: tuple[int, ...]
    cut: int
    answers: Tensor
    right: Tensor
    whole: Tensor
    stored: float
    operations: list[float]
    all_operations: float
    sent: dict[str, dict[int, Sent]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.whole)


@dataclass(frozen=True, slots=True)
class Point:
    """One rule at one rate: the `share` of images that were sent, the mean bytes of an image (requests and answers),
    the `accuracy`, that of drawing at random as many images for each exit and for sending (None where there are no
    exits), and the mean operations of an image at the client and at the server."""

    rate: str
    threshold: float
    share: float
    bytes: float
    accuracy: float
    at_random: float | None
    client: float
    server: float


def tradeoff(
    run: str | Path, *, split: Literal["validation", "test"] = "validation", rates: Sequence[str] = (),
    measure: Measure = "probability", rise: float | None = None, limit: int | None = None, round: int | None = None,
    device: str | None = None, overrides: list[str] | None = None,
) -> tuple[Measured, dict[str, list[Point]]]:  # fmt: skip
    """Measure a run's model, with its exits if it has some, on a `split` of its data, of which `limit` images are taken
    at most, and return what was found and the points of each rate by its name. `rates` are as the function of that name
    takes them; with a `rise`, as in `Rule`, images are sent from the exits too.

    Raises a SplitfedError as `RunModel.read` does, for data that are not here, and for rates that do not serve.
    """
    model = RunModel.read(run, round=round, device=device, overrides=overrides)
    chosen_rates = read_rates(model.scenario.compression, rates)
    exits = heads(model) if has_exits(model) else None
    if exits is None and (rise is not None or measure != "probability"):
        raise RunError(
            f"{run}: a measure or a rise of confidence is asked for, and no exits are there to be confident: leave it "
            "out, or make some with 'splitfed exits RUN'"
        )
    images, rows = some_of(model, split, limit)
    found = measure_all(model, exits, images, rows, chosen_rates, early=rise is not None)
    return found, {rate.name: curve(found, rate.name, measure, rise) for rate in chosen_rates}


def some_of(model: RunModel, split: Literal["validation", "test"], limit: int | None) -> tuple[Images, Tensor]:
    """Return a split of a run's data, and the rows to measure, the first `limit` or all. Raises DataError for an empty
    one."""
    data = load_data(model.scenario)
    images = data.validation if split == "validation" else data.test
    count = min(len(images), limit or len(images))
    if not count:
        raise DataError(f"data: the {split} split is empty, and nothing can be measured")
    return images, torch.arange(count)


def measure_all(
    model: RunModel, exits: Exits | None, images: Images, rows: Tensor, rates: Sequence[Rate], *, early: bool = False
) -> Measured:  # fmt: skip
    """Take these rows of images past the exits of the front, and across after its last block at each rate; with
    `early` also after each of the exits. Raises a SplitfedError for a rate that merges samples, and for one at which
    exits would see other tokens than those of the run."""
    budgets = _budgets(model, exits, rates)
    trunk, size = model.trunk, min(model.scenario.training.eval_batch_size, 64)
    geometry = trunk.front.geometry(1, len(model.classes))
    asking = {rate.name: Asking(rate.compression, trunk, geometry, model.device) for rate in rates}
    blocks = tuple(block for block in exits.blocks if block <= trunk.cut) if exits else ()
    leaving = sorted({trunk.cut, *(blocks if early else ())})
    watch = _Watch(trunk, leaving, list(asking.values()))
    answers, right, whole = [], [], []
    crossed: dict[str, dict[int, list[tuple[bool, int, int, int]]]] = {
        name: {b: [] for b in leaving} for name in asking
    }
    done = 0
    for batch in batches(
        images, rows, size, Key(0), workers=model.scenario.data.workers, epochs=1, mean=model.mean,
        std=model.std, shuffle=False,
    ):  # fmt: skip
        labels = batch.labels.to(model.device)
        with torch.no_grad():
            each = {budget: watch.run(batch.images.to(model.device), budget) for budget in {None, *budgets.values()}}
            made = each[None]
            if exits is not None and blocks:
                said = exits([exits.look(made[block][0]) for block in blocks])
                found = torch.stack([exits.answer(place, said) for place in range(len(blocks))])
                answers.append(found.cpu())
                right.append((found.argmax(2) == labels).cpu())
            logits = trunk.end(trunk.go_on(trunk.cut, trunk.cross(made[trunk.cut][0])))
            whole.append((logits.argmax(1) == labels).cpu())
        for name, one in asking.items():
            for block in leaving:
                crossed[name][block] += _across(one, block, *each[budgets[name]][block], labels, done)
        done += len(labels)
    so_far = operations(model, exits, blocks)
    sent = {
        name: {block: Sent(*(torch.tensor(part) for part in zip(*rows, strict=True))) for block, rows in by.items()}
        for name, by in crossed.items()
    }
    classes = len(model.classes)
    return Measured(
        blocks, trunk.cut, torch.cat(answers, 1) if answers else torch.zeros(0, done, classes),
        torch.cat(right, 1) if right else torch.zeros(0, done, dtype=torch.bool), torch.cat(whole),
        images.stored_bytes(rows) / done, so_far[: trunk.cut + 1], so_far[-1], sent,
    )  # fmt: skip


def curve(found: Measured, rate: str, measure: Measure, rise: float | None = None, most: int = 101) -> list[Point]:
    """Return the points of a rate, from nothing sent to everything, for at most so many thresholds; the last alone
    where there are no exits."""
    if not found.blocks:
        return [point(found, rate, Rule(2.0, measure))]
    sure = confidence(found.answers.float(), measure)
    levels = torch.linspace(0, 1, most - 1)
    steps = torch.quantile(sure.flatten()[: 1 << 23], levels)  # more than this many torch refuses
    thresholds = [0.0, *torch.nextafter(steps, torch.tensor(2.0)).unique().tolist()]
    return [point(found, rate, Rule(threshold, measure, rise)) for threshold in thresholds]


def point(found: Measured, rate: str, rule: Rule) -> Point:
    """Return what a rule comes to at a rate."""
    sent, count, exits = found.sent[rate], len(found), len(found.blocks)
    ways = routes(confidence(found.answers.float(), rule.measure), rule)
    gone = ways.answered == exits
    after = torch.full((count,), found.cut)
    for place, block in enumerate(found.blocks[:-1]):
        if block in sent:
            after[gone & (ways.left == place)] = block
    right, size = torch.zeros(count, dtype=torch.bool), torch.zeros(count)
    for block, one in sent.items():
        rows = gone & (after == block)
        right[rows], size[rows] = one.right[rows], (one.up + one.down)[rows].float()
    share = float(gone.float().mean())
    end = torch.tensor([*found.blocks, found.cut])[ways.answered]
    client = torch.tensor(found.operations)[torch.where(gone, after, end)]
    server = torch.where(gone, found.all_operations - torch.tensor(found.operations)[after], 0.0)
    at_random = None
    if exits:
        shares = torch.bincount(ways.answered, minlength=exits + 1) / count
        each = torch.cat([found.right.float().mean(1), sent[found.cut].right.float().mean()[None]])
        at_random = float((shares * each).sum())
    return Point(
        rate, rule.threshold, share, float(size.mean()), float(chosen(found.right, right, ways).float().mean()),
        at_random, float(client.mean()), float(server.mean()),
    )  # fmt: skip


def _budgets(model: RunModel, exits: Exits | None, rates: Sequence[Rate]) -> dict[str, float | None]:
    """Return the budgets of rates with gates, None where it is that of the run."""
    own = Rate("run", model.scenario.compression).budget
    found = {rate.name: rate.budget if rate.budget != own else None for rate in rates}
    for name, budget in found.items():
        if exits is not None and budget is not None:
            raise RunError(
                f"--rate {name}: gates with a budget of {budget:g} show the exits other tokens than the {own:g} of the "
                "run: name that, or measure a run without exits"
            )
    return found


def _across(
    asking: Asking, block: int, tokens: Tensor, attention: Tensor | None, labels: Tensor, first: int
) -> list[_Crossed]:
    """Send images one by one, and return of each whether the answer is right, the bytes up and down, and those of the
    activations."""
    found = []
    for row in range(len(tokens)):
        looked_at = None if attention is None else partial(attention.__getitem__, slice(row, row + 1))
        key = Key(0).at("ask", first + row)
        up = asking.pack(
            tokens[row : row + 1], block, key, number=first + row, model="0" * 16, attention=looked_at,
        )  # fmt: skip
        down = asking.answer(asking.unpack(up.buffer))
        logits = asking.unpack_answer(down.buffer, first + row, 1).logits
        right = bool(logits.argmax(1)[0] == labels[row])
        found.append((right, up.total, down.total, up.sizes["smashed"].sent))
    return found


class _Watch:
    """Runs the front, and keeps what each block made and, where a rate asks for it, what its class token looked at."""

    def __init__(self, trunk: Trunk, leaving: Sequence[int], rates: Sequence[Asking]) -> None:
        self._trunk = trunk
        asked = [block for block in leaving if any(rate.needs_attention(block) for rate in rates)]
        self._attention = {block: ClsAttention(trunk.front, block) for block in asked}

    def run(self, images: Tensor, budget: float | None) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Return by block what it made at a budget of its gates, `[B, n, D]`, and the attention `[B, n]` or None."""
        trunk = self._trunk.at(budget)
        made, tokens = {}, trunk.begin(images)
        for block in range(1, trunk.cut + 1):
            tokens = trunk.block(block, tokens)
            made[block] = tokens, self._attention[block].read() if block in self._attention else None
        return made
