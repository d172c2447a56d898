"""Semantic tokens: what gates close, at which budget; ragged samples on the wire and in the back; and whole runs."""

import pytest
import torch
from helpers import PLAIN, small, table
from models import newest, shaken, whole_model
from models import small as small_vit
from torch.nn.functional import cross_entropy

from splitfed import estimate, simulate
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.settings import SemanticTokensConfig
from splitfed.compression.reducers.tokens.ragged import flat, padded
from splitfed.compression.reducers.trained.gates import TokenGates
from splitfed.compression.reducers.trained.layers import IDENTITY
from splitfed.errors import ModelError, ScenarioError, WireError
from splitfed.model.parts import split
from splitfed.reports.explanation.explain import explain
from splitfed.seeds import Key
from splitfed.split.assembly import check_model
from splitfed.split.computing.rehearsal import PLACE
from splitfed.split.evaluation import EvaluationCut
from splitfed.testing import arrive, cut_for
from splitfed.wire.frame import pack

GEOMETRY = Geometry(batch=6, tokens=17, width=24, prefix=1, classes=5, blocks=2)
BUDGETS = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]
EXACT = [*PLAIN, "compression.parts.lossless=none"]
FINE = "model.args={patch_size: 2, embed_dim: 16, depth: 3, num_heads: 2}"  # 16 patches


def fixed(budget: float, **more: object) -> str:
    told = "".join(f", {key}: {value}" for key, value in more.items())
    return f"compression.reducer={{kind: semantic_tokens, budget: {budget}, drawn: null{told}}}"


def cut_model(gates: int = 1, pool: str = "token", registers: int = 0):
    """Return a front of two blocks, with gates, and its back."""
    vit = shaken(small_vit(cut=2, args={"global_pool": pool, "reg_tokens": registers, "depth": 4}))
    front, back = split(vit, 2)
    reducer = SemanticTokensConfig(gates=gates).build()
    front.attach(reducer.halves(front.geometry(6, 5), Key(3)))
    back.ragged = True
    return front, back


def images(count: int, number: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=Key(number).generator())


def counts_of(activations: torch.Tensor, prefix: int = 1) -> torch.Tensor:
    return activations[:, prefix:].ne(0).any(-1).sum(1)


def test_the_best_scores_of_a_mini_batch_are_left_as_the_formula_says():
    front, _ = cut_model()
    front.requires_grad_(False)
    gates, shown, budget = front.gates, images(6), 0.4
    token = (1 - budget) * gates.ends[0] + budget * gates.ends[1]
    before = front._pos_embed(front.patch_embed(shown))  # timm has no public name for it
    x = torch.cat([before, token.expand(6, 1, -1)], 1)
    for block in front.blocks:
        x = block(x)
    whole = x[:, :-1]
    norm, weight = gates.norms[0], gates.scores[0].weight[0]
    scores = [[float(norm(whole[b, i]) @ weight) for i in range(1, 17)] for b in range(6)]
    for row in scores:
        mean = sum(row) / 16
        deviation = (sum((s - mean) ** 2 for s in row) / 16) ** 0.5
        row[:] = [(s - mean) / deviation for s in row]
    best = {(b, max(range(16), key=lambda i: scores[b][i])) for b in range(6)}
    rest = sorted({(b, i) for b in range(6) for i in range(16)} - best, key=lambda at: -scores[at[0]][at[1]])
    left = best | set(rest[: round(0.4 * 96) - 6])
    made = front(shown, budget)
    for b in range(6):
        assert torch.allclose(made[b, 0], whole[b, 0], atol=1e-5)
        for i in range(16):
            expected = whole[b, i + 1] if (b, i) in left else torch.zeros(24)
            assert torch.allclose(made[b, i + 1], expected, atol=1e-5), (b, i)


@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize("registers", [0, 2])
def test_in_training_as_many_are_left_as_the_budget_says(gates, registers):
    front, _ = cut_model(gates, registers=registers)
    for budget in BUDGETS:
        found = counts_of(front(images(6), budget), 1 + registers)
        assert int(found.sum()) == max(6, round(budget * 96))
        assert int(found.min()) >= 1
    assert len(counts_of(front(images(6), 0.3), 1 + registers).unique()) > 1  # more of one, fewer of another


@pytest.mark.parametrize("gates", [1, 2])
def test_one_model_evaluates_at_every_budget(gates):
    """After training passes at drawn budgets, on images that it has not seen, and a sample at a time."""
    front, _ = cut_model(gates)
    with torch.no_grad():
        for number in range(200):
            front(images(16, number), 0.05 + 0.95 * (number * 0.618 % 1))
        front.eval()
        shown, shares, before = images(200, 1000), [], torch.zeros(200, dtype=torch.int64)
        for budget in BUDGETS:
            found = counts_of(front(shown, budget))
            shares.append(float(found.float().mean()) / 16)
            assert abs(shares[-1] - budget) < 0.02
            assert int(found.sum()) > int(before.sum())
            assert torch.equal(found[7:8], counts_of(front(shown[7:8], budget)))
            before = found
        each = torch.linspace(0.1, 1, 200)  # a budget of its own for each sample
        assert torch.equal(counts_of(front(shown, each))[:1], counts_of(front(shown[:1], 0.1)))


def test_gates_learn_by_the_gradient_at_the_cut_alone():
    """What crosses, taken through the tokens that were sent into the front, is autograd's of the model in one piece."""
    front, back = (part.double() for part in cut_model(2))
    shown, labels = images(6).double(), torch.arange(6) % 5
    cross_entropy(back(front(shown, 0.4)), labels).backward()
    whole = {name: p.grad.clone() for name, p in front.named_parameters()}
    front.zero_grad()
    cut = cut_for({"kind": "semantic_tokens", "gates": 2}, GEOMETRY)
    activations = front(shown, 0.4)
    plan, _ = cut.plan(activations, labels, Key(0))
    smashed = plan.reduce(activations)
    assert smashed.shape == (6 + 38, 24)
    arrived = smashed.detach().requires_grad_()
    cross_entropy(back(cut.reducer.restore(arrived, plan.side, {})), labels).backward()
    smashed.backward(arrived.grad)
    for name, parameter in front.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-9, atol=1e-12)
    assert all(whole[f"gates.scores.{gate}.weight"].abs().max() > 1e-7 for gate in (0, 1))
    assert whole["gates.ends"].abs().max() > 1e-7


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", "map"])
def test_a_padded_sample_is_as_if_it_were_alone(pool):
    _, back = cut_model(pool=pool, registers=1)
    back.eval()
    lengths = torch.tensor([3, 9, 5, 18])
    rows = torch.randn(int(lengths.sum()), 24, generator=Key(1).generator())
    for fused in (True, False):
        for block in back.blocks:
            block.attn.fused_attn = fused
        together = back(padded(rows, lengths))
        for one, own in zip(together, rows.split(lengths.tolist()), strict=True):
            torch.testing.assert_close(one, back(own.unsqueeze(0))[0], rtol=1e-4, atol=1e-5)
    back.ragged = False
    alone = rows[:3].unsqueeze(0)
    unmasked = back(alone)
    back.ragged = True
    assert torch.equal(back(padded(rows[:3], lengths[:1])), unmasked)  # one sample a batch has no padding


def test_padding_is_what_flat_leaves_out():
    lengths = torch.tensor([2, 1, 4])
    rows = torch.randn(7, 3, generator=Key(2).generator())
    samples = padded(rows, lengths)
    assert samples.shape == (3, 4, 3)
    assert torch.equal(flat(samples, lengths), rows)
    assert not samples[1, 1:].any()


@pytest.mark.parametrize(
    "counts",
    [[2, 2, 2, 2, 2], [3, 2, 2, 2, 2, 2], [1, 3, 2, 2, 2, 2], [0, 4, 2, 2, 2, 2], [-1, 5, 2, 2, 2, 2],
     [18, 2, 2, 2, 2, 2], [2**63 - 1, 2**63 - 1, 4, 4, 3, 3], [2**62] * 6, [2] * 7],
    ids=str,
)  # fmt: skip
def test_counts_that_do_not_fit_are_refused(counts):
    cut = cut_for("semantic_tokens", GEOMETRY)

    def frame(told: list[int]) -> bytes:
        sent = {"smashed": torch.ones(12, 24), "targets": torch.zeros(6, dtype=torch.int64)}
        packets = cut.encode(sent | {"side/counts": torch.tensor([max(0, one) for one in told])}, Key(0), "test")
        return pack("step", 1, 0, 1, packets, {"examples": 6})

    assert arrive(cut, frame([2] * 6)).lengths.tolist() == [2] * 6
    with pytest.raises(WireError):
        arrive(cut, frame(counts))
    with pytest.raises(WireError):
        cut.reducer.check(
            torch.ones(12, 24), torch.zeros(6), {"counts": torch.tensor(counts)}, {}, GEOMETRY
        )  # fmt: skip


def test_nobody_can_send_a_sample_that_has_no_token():
    """Rows of zeros alone are no tokens; a peer may send them, and the loss stays a number."""
    _, back = cut_model(pool="token")
    assert bool(back(torch.zeros(2, 5, 24)).isfinite().all())


def test_one_client_equals_the_whole_model(tmp_path):
    sgd = [f"training.{side}.optimiser={{kind: sgd, lr: 0.1}}" for side in ("client", "server")]
    scenario = small(*EXACT, FINE, *sgd, fixed(0.4), "federation.clients=1")
    torch.set_num_threads(1)
    found, expected = newest(simulate(scenario, runs=tmp_path).folder), whole_model(scenario)
    assert found.keys() == expected.keys() >= {"gates.thresholds", "gates.scores.0.weight"}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_the_ledger_counts_tokens_and_no_padding(tmp_path):
    scenario = small(*EXACT, FINE, fixed(0.3), "federation.labels=private", "federation.rounds=1",
                     *(f"compression.tail_{role}.lossless=none" for role in ("smashed", "gradient")))  # fmt: skip
    result = simulate(scenario, runs=tmp_path)
    batches = [16, 16] * 3  # of 32 images each
    tokens = sum(size + round(0.3 * 16 * size) for size in batches)
    for role in ("smashed", "cut_gradient", "tail_smashed", "tail_gradient"):
        assert result.totals.select(role=role).sent == 4 * 16 * tokens, role
    gates = TokenGates(16, 1, 1, 0.3, Key(0)).state_dict()
    numbers = sum(tensor.numel() for tensor in gates.values())
    assert result.totals.select(role="parts").sent == 2 * 3 * 4 * numbers
    told = estimate(scenario).round
    for role in ("smashed", "cut_gradient", "tail_smashed", "tail_gradient", "parts"):
        assert told.select(role=role).sent == result.totals.select(role=role).sent, role


def test_each_mini_batch_draws_its_budget(tmp_path):
    drawn = "compression.reducer={kind: semantic_tokens, drawn: [0.2, 0.6]}"
    scenario = small(*EXACT, FINE, drawn, "federation.local_epochs=6")
    totals = simulate(scenario, runs=tmp_path)
    rows = [row for row in table(totals.folder / "ledger.csv") if row["role"] == "smashed"]
    tokens = [int(row["sent_bytes"]) / 64 for row in rows]
    shares = [(count - 16) / 256 for count in tokens]
    assert 0.2 - 1 / 256 <= min(shares) < 0.25  # whole tokens of 256
    assert 0.55 < max(shares) <= 0.6 + 1 / 256
    told = estimate(scenario).round.select(role="smashed").sent * 2
    assert sum(tokens) * 64 == pytest.approx(told, rel=0.1)


ELSEWHERE = {
    "psl": ["federation.mode=psl"],
    "bits": ["compression.smashed.codec={kind: uniform, bits: 3}", "federation.clip.smashed=3"],
    "local": ["phases=[{kind: local, rounds: 1, align_every: 2}, {kind: gradient}]"],
    "memory": ["phases=[{kind: gradient, rounds: 1}, {kind: frozen}]", "federation.rounds=4",
               "memory={store: float16}"],
    "held out": ["evaluation.held_out=0.25", "federation.labels=private"],
}  # fmt: skip


@pytest.mark.parametrize("keys", ELSEWHERE.values(), ids=ELSEWHERE)
def test_runs_go_through(keys, tmp_path):
    result = simulate(small(FINE, "compression.reducer=semantic_tokens", *keys), runs=tmp_path)
    losses = torch.tensor([row.train_loss for row in result.rounds if row.train_loss is not None])
    assert len(losses) > 1
    assert bool((losses < 2.6).all())  # of ten classes, chance has 2.3


def test_evaluation_crosses_as_it_is_evaluated_in_one_piece():
    """Only what is open is sent, at the budget of the forward pass, and the back makes the same of it."""
    front, back = cut_model()
    front.eval(), back.eval()
    cut = EvaluationCut(cut_for("semantic_tokens", GEOMETRY), IDENTITY)
    labels = torch.arange(6) % 5
    with torch.no_grad():
        front.gates.thresholds.copy_(torch.linspace(2, -2, 33).expand(1, -1))
        for budget in (0.2, 0.6):
            made = front(images(6), budget)
            packed = cut.pack(made, labels, Key(0), PLACE)
            looked = cut.batch(cut.unpack_up(packed.buffer))
            assert packed.sizes["evaluation"].reduced == 4 * 24 * int(6 + counts_of(made).sum()) + 48 + 48
            assert torch.equal(looked.lengths, counts_of(made) + 1)
            torch.testing.assert_close(back(looked.smashed), back(made), rtol=1e-4, atol=1e-5)
            assert torch.equal(looked.labels, labels)


def test_explain_shows_what_is_left(tmp_path):
    folder = simulate(small(FINE, fixed(0.5)), runs=tmp_path).folder
    found = explain(folder, overrides=["compression.reducer.budget=0.25"])
    assert found.kept[:, 0].all()
    assert float(found.kept[:, 1:].mean()) == pytest.approx(0.25, abs=0.01)
    assert found.attention.shape == found.kept.shape


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["compression.smashed.delta=true"], "another number of them"),
        (["phases=[{kind: frozen}]", "memory={mix: 0.2}", "federation.rounds=4"], "memory.mix: the reducer"),
        (["federation.mode=fl", "training.server={}"], "with fl nothing crosses a cut"),
        (["compression.reducer.drawn=[0.6, 0.2]"], "from more to less"),
        (["compression.reducer.budget=0"], "greater than 0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(keys, reason):
    with pytest.raises(ScenarioError, match=reason.replace(".", r"\.")):
        small(FINE, "compression.reducer=semantic_tokens", *keys)


def test_there_are_no_more_gates_than_blocks():
    scenario = small(FINE, "compression.reducer={kind: semantic_tokens, gates: 3}", "model.cut=2")
    with pytest.raises(ModelError, match="gates: 3 is more than the 2 blocks before"):
        check_model(scenario)


def test_an_adapter_leaves_gates_free(tmp_path):
    result = simulate(small(*EXACT, FINE, fixed(0.5), "model.adapter=norms", "federation.rounds=1"), runs=tmp_path)
    assert result.totals.select(role="parts").sent > 0
