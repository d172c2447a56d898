"""What a client sends in a run is what `rehearse` enumerates: frame by frame, role by role, byte by byte."""

from pathlib import Path

import pytest
import torch
from helpers import DEEPER, PLAIN, small

from splitfed import Scenario, simulate
from splitfed.compression.expect import Geometry
from splitfed.run.ledger import Sizes, read_rows
from splitfed.seeds import Key
from splitfed.split import ending
from splitfed.split.assembly import assemble
from splitfed.split.computing.rehearsal import Crossed, RandomBatch
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut

DEPTH = "model.args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}"
REDUCERS = {
    "none": [], "tokens": ["compression.reducer={kind: discard_tokens, kept_tokens: 0.6}"],
    "c3sl": ["compression.reducer={kind: c3sl, r: 4}"],
    "semantic": ["compression.reducer={kind: semantic_tokens, budget: 0.3, drawn: null}"],
    "bottleneck": ["compression.reducer={kind: bottleneck, width: 4}", "compression.parts.lossless=none"],
}  # fmt: skip


def bare(private: bool, bits: int | None) -> list[str]:
    """Return how nothing is lossless, so that no size depends on the images."""
    tail = ["tail_smashed", "tail_gradient"] if private else []
    found = [DEPTH, *PLAIN, *(f"compression.{role}.lossless=none" for role in tail)]
    if bits:
        roles = ["smashed", "cut_gradient", *tail]
        found += [f"compression.{role}.codec={{kind: uniform, bits: {bits}}}" for role in roles]
    return [*found, "federation.labels=private"] if private else found


def frames(folder: Path, client: int) -> list[Crossed]:
    """Return the frames of a client in a round's data plane, in the ledger's order; each ends with its envelope."""
    found: list[Crossed] = []
    roles: dict[str, Sizes] = {}
    for row in read_rows(folder / "ledger.csv"):
        if row.client == client and row.plane == "data":
            roles[row.role] = row.sizes
            if row.role == "envelope":
                found.append((row.direction, roles))
                roles = {}
    return found


def rehearsed(scenario: Scenario, trained: list[int], evaluated: list[int]) -> list[Crossed]:
    """Return the frames of mini-batches of these sizes, and of what ends the streams, as the ledger has them: a step of
    the evaluation after that of training."""
    key, (front, back, _) = Key(1), assemble(scenario, 10)
    cut = Cut.of(scenario, front.geometry(scenario.training.batch_size, 10), torch.device("cpu"))
    evaluation = EvaluationCut(cut, front.encoder)
    steps: list[list[Crossed]] = [[] for _ in range(1 + max(len(trained), len(evaluated)))]
    for sizes in (trained, evaluated):
        for step, size in enumerate(sizes):
            batch = RandomBatch(size, cut.geometry, key.at(size), cut.device)
            if sizes is trained:
                steps[step] += cut.rehearse(batch, key, front.encoder, back.decoder)
            else:
                steps[step] += evaluation.rehearse(batch, key, front.encoder)
        if sizes:
            steps[len(sizes)] += ending.rehearse()
    return [crossed for step in steps for crossed in step]


@pytest.mark.parametrize("private", [False, True], ids=["shared", "private"])
@pytest.mark.parametrize("bits", [None, 3], ids=["float32", "uniform"])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_run_sends_the_frames_that_are_rehearsed(private: bool, bits: int | None, reducer: str, tmp_path) -> None:
    # In evaluation gates leave about as many tokens as they should, and not exactly.
    out = [] if reducer in ("c3sl", "semantic") else ["evaluation.held_out=0.25"]
    scenario = small(*bare(private, bits), *REDUCERS[reducer], "federation.rounds=1", *out)
    real = frames(simulate(scenario, runs=tmp_path).folder, client=2)
    expected = rehearsed(scenario, *(([16, 8], [8]) if out else ([16, 16], [])))
    assert [way for way, _ in real] == [way for way, _ in expected]
    for number, ((_, found), (_, told)) in enumerate(zip(real, expected, strict=True)):
        if found.keys() == {"envelope"} and told.keys() == {"envelope"}:
            # What a client counts is written in 1 to 5 bytes each way, and taken to be in 5.
            assert 0 <= told["envelope"].sent - found["envelope"].sent <= 8, number
        else:
            assert found == told, number


@pytest.mark.parametrize("width", [1, 24, 192])
def test_random_rows_vary_ever_less_as_behind_a_trained_front(width):
    """What a codec that looks for common directions finds in them falls by the powers that were measured."""
    batch = RandomBatch(400, Geometry(400, 50, width, 1, 10), Key(3), torch.device("cpu"))
    activations = batch.activations.detach()
    own, common = activations - activations.mean(0), activations.mean(0)
    assert 0.15 < common.var() < 0.45  # what all images have at a position
    for numbers, fall, share in ((own, 1.2, 0.7), (batch.like((400, 50, width)), 1.0, 1.0)):
        rows = numbers.flatten(0, 1).double()
        found = torch.linalg.eigvalsh(rows.T.cov().view(width, width)).flip(0)
        wanted = torch.arange(1, width + 1).double() ** -fall
        torch.testing.assert_close(found, share * wanted / wanted.mean(), rtol=0.2, atol=0)


def test_a_tail_is_sent_what_blocks_with_budgets_pass_on() -> None:
    """Of four patches one block at a budget of 0.9 passes three on; without budgets all go."""
    private = (*DEEPER, "federation.labels=private", "model.tail=1")
    for more, tokens in (((), 5), (("model.adaptive={kind: alast, trained: 2}",), 4)):
        parts = assemble(small(*private, *more), 10, pretrained=False)
        batch = RandomBatch(3, parts.front.geometry(8, 10), Key(1), torch.device("cpu"), parts.back)
        assert batch.behind(torch.zeros(3, 5, 16)).shape == (3, tokens, 16)
