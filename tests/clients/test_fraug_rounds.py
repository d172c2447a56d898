"""Features made up at clients, in whole runs: what is averaged and counted, what stays, and going on after a kill."""

import math
from pathlib import Path

import pytest
import torch
from helpers import DEEPER, small, table
from outcomes import outcome
from safetensors.torch import load_file
from torch import Tensor

from splitfed import estimate, simulate
from splitfed.clients.worker import Worker
from splitfed.run.observer import Observer
from splitfed.split.assembly import assemble

FRAUG = ["training.client.fraug={}", "compression.front_weights.lossless=none", "data.limit=60"]
PRIVATE = ["federation.labels=private", "model.tail=1"]
# Two linear layers, of 8 numbers of noise and 10 classes to 16, and of 16 to 16, each with a norm.
A_GENERATOR = (8 + 10) * 16 + 16 + 2 * 16 + 16 * 16 + 16 + 2 * 16


def newest(folder: Path) -> dict[str, Tensor]:
    return load_file(sorted(folder.glob("checkpoints/round-*"))[-1] / "model.safetensors")


def own(folder: Path) -> list[dict[str, Tensor]]:
    clients = sorted({path.parent for path in folder.glob("**/own-*.safetensors")})
    return [load_file(sorted(client.glob("own-*"))[-1]) for client in clients]


def test_the_generator_is_averaged_and_counted_and_the_rest_stays(tmp_path: Path, monkeypatch) -> None:
    came: list[tuple[int, dict[str, Tensor]]] = []
    train = Worker.train

    def noting(self, *args, **more):
        trained = train(self, *args, **more)
        came.append((trained.examples, {name: tensor.clone() for name, tensor in trained.weights.items()}))
        return trained

    monkeypatch.setattr(Worker, "train", noting)
    plan = small(*DEEPER, *FRAUG, *PRIVATE, "federation.rounds=1", "federation.mode=sfl-v1")
    result = simulate(plan, runs=tmp_path)
    found, names = newest(result.folder), [name for name in came[0][1] if name.startswith("generator.")]
    assert len(names) == 8
    for name in names:
        mean = sum(examples * weights[name].double() for examples, weights in came) / sum(n for n, _ in came)
        assert torch.allclose(found[name].double(), mean, atol=1e-6)
        assert not came[0][1][name].equal(came[1][1][name])
    assert not any("fraug" in name for _, weights in came for name in weights)
    for direction in ("up", "down"):
        crossed = result.totals.select(role="generator_weights", direction=direction)
        assert crossed.raw == crossed.sent == 3 * 4 * A_GENERATOR
        assert estimate(plan).round.select(role="generator_weights", direction=direction).sent == crossed.sent
    each = own(result.folder)
    assert len(each) == 3
    assert all(name.startswith("fraug.") for one in each for name in one)
    assert not any(each[0][name].equal(other[name]) for other in each[1:] for name in each[0] if "weight" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "overrides"),
    [
        (4, ["federation.mode=fl", "training.server={}"]),
        (2, ["model.exits={blocks: [1, 2, 3]}", "federation.mode=sfl-v1", "federation.rounds=5", "memory={passes: 1}",
             "phases=[{kind: local, rounds: 1}, {kind: gradient, rounds: 1}, frozen]", "training.client_state=keep"]),
        (3, [*PRIVATE, "compression.reducer={kind: adc, ratio: 0.4}", "compression.front_weights.delta=true",
             "training.precision=bfloat16", "data.partition={kind: shifted}"]),
    ],
    ids=["whole model", "exits and phases", "private labels"],
)  # fmt: skip
def test_it_serves_with_norms_of_each_client_s_own(blocks: int, overrides: list[str], tmp_path: Path) -> None:
    rounds = ["evaluation={held_out: 0.2}", "federation.rounds=3", "federation.cohort=2", "federation.local_norms=true"]
    plan = small(*DEEPER, *FRAUG, *rounds, *overrides)
    result = simulate(plan, runs=tmp_path)
    assert all(math.isfinite(row.train_loss) for row in result.rounds if row.train_loss is not None)
    assert result.summary.worst_client is not None
    found, start = newest(result.folder), {}
    for part in assemble(plan, 10):
        start |= part.state_dict()
    ends = {"norm.weight", "norm.bias"} if plan.tail is not None or not plan.federation.splits else set()
    each = own(result.folder)
    assert each
    for kept in each:
        assert all(tensor.isfinite().all() for tensor in kept.values())
        norms = {name for name in kept if not name.startswith("fraug.")}
        assert ends <= norms
        assert len(norms) == 4 * blocks + len(ends)
        assert all(found[name].equal(start[name]) for name in norms)
        assert any(not kept[name].equal(start[name]) for name in norms)
        assert len(kept) > len(norms)


def test_a_run_that_is_interrupted_goes_on_as_it_would_have(tmp_path: Path) -> None:
    class Impatient(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == 3 and share > 0.5:
                raise KeyboardInterrupt

    rounds = ["federation.cohort=2", "federation.rounds=3", "phases=[{kind: frozen, rounds: 1}, gradient]"]
    plan = small(*DEEPER, *FRAUG, *rounds, "model.exits={blocks: [2]}", "training.client_state=keep")
    expected = simulate(plan, runs=tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "cut", observers=[Impatient()])
    (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder)
    found, wanted = outcome(folder), outcome(expected)
    assert all(found[key] == wanted[key] for key in ("model", "metrics", "ledger"))
    assert all(one[n].equal(other[n]) for one, other in zip(own(folder), own(expected), strict=True) for n in one)
    assert {row["role"] for row in table(folder / "ledger.csv")} >= {"generator_weights", "exit_weights"}
