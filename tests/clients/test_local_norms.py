"""LayerNorms that each client has of its own: they never come together, and all else does as ever."""

from pathlib import Path

import pytest
import torch
from helpers import DEEPER, PLAIN, small, table
from outcomes import outcome
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitfed import estimate, simulate
from splitfed.model.build import build
from splitfed.run.observer import Observer
from splitfed.seeds import Key
from splitfed.split.assembly import assemble

LOCAL = "federation.local_norms=true"
EVALUATED = "evaluation={held_out: 0.2}"
# Scales and shifts of two LayerNorms of width 16 in each block.
A_BLOCK = 4 * 16


def newest(folder: Path) -> dict[str, Tensor]:
    return load_file(sorted(folder.glob("checkpoints/round-*"))[-1] / "model.safetensors")


def own(folder: Path) -> list[dict[str, Tensor]]:
    """Return what each client has of its own after its last round."""
    clients = sorted(path.parent for path in folder.glob("**/own-*.safetensors"))
    return [load_file(sorted(client.glob("own-*"))[-1]) for client in dict.fromkeys(clients)]


def test_a_client_alone_learns_as_without(tmp_path: Path) -> None:
    plan = small(*DEEPER, *PLAIN, "federation.clients=1", EVALUATED, "training.client_state=keep")
    plain, local = (simulate(plan.with_(more), runs=tmp_path / str(n)) for n, more in enumerate(([], [LOCAL])))
    (norms,), expected, found = own(local.folder), newest(plain.folder), newest(local.folder)
    assert {name.split(".")[2] for name in norms} == {"norm1", "norm2"}
    assert all(tensor.equal(expected[name]) for name, tensor in norms.items())
    assert all(found[name].equal(tensor) for name, tensor in expected.items() if name not in norms)
    start = assemble(plan, 10).front.state_dict()
    assert all(found[name].equal(start[name]) and not tensor.equal(start[name]) for name, tensor in norms.items())
    each = [outcome(one.folder) for one in (plain, local)]
    assert each[0]["clients"] == each[1]["clients"]
    rows = [[row for row in table(one.folder / "ledger.csv") if row["plane"] == "data"] for one in (plain, local)]
    assert rows[0] == rows[1]


def test_norms_cross_once_and_differ_from_client_to_client(tmp_path: Path) -> None:
    plan = small(*DEEPER, *PLAIN, LOCAL, EVALUATED, "federation.rounds=3")
    result = simulate(plan, runs=tmp_path)
    front = sum(tensor.numel() for tensor in assemble(plan, 10).front.state_dict().values())
    rows = [row for row in table(result.folder / "ledger.csv") if row["role"] == "front_weights"]
    sent = {(int(row["round"]), int(row["client"]), row["direction"]): int(row["reduced_bytes"]) for row in rows}
    less = 4 * (front - 2 * A_BLOCK)
    for client in range(3):
        for round in (1, 2, 3):  # down for training and for the evaluation after it
            assert sent[round, client, "up"] == less
            down = [int(row["reduced_bytes"]) for row in rows if (row["round"], row["client"], row["direction"])
                    == (str(round), str(client), "down")]  # fmt: skip
            assert sum(down) == 2 * less + (4 * 2 * A_BLOCK if round == 1 else 0)
    each = own(result.folder)
    assert len(each) == 3
    assert not any(each[0][name].equal(other[name]) for other in each[1:] for name in each[0])
    told = estimate(plan)
    assert told.once.select(role="front_weights").reduced == 3 * 4 * 2 * A_BLOCK
    crossed = result.totals.select(role="front_weights", plane="control").reduced
    assert (
        3 * told.round.select(role="front_weights").reduced + told.once.select(role="front_weights").reduced == crossed
    )


def test_those_that_clients_load_are_those_that_they_would_be_sent(tmp_path: Path) -> None:
    plan, path = small(*DEEPER, *PLAIN, "data.limit=48", LOCAL, "federation.cohort=2"), tmp_path / "vit.safetensors"
    save_file(build(plan.model, 10, key=Key(4)).state_dict(), path)
    plan = plan.with_([f"model.weights={path}"])
    sent = simulate(plan, runs=tmp_path / "sent")
    loaded = simulate(plan.with_(["compression.front_weights.initial=load"]), runs=tmp_path / "loaded")
    each = zip(own(sent.folder), own(loaded.folder), strict=True)
    assert all(one[name].equal(other[name]) for one, other in each for name in one)
    fewer = sum(row["role"] == "front_weights" and row["direction"] == "down" and row["round"] == "1"
                for row in table(loaded.folder / "ledger.csv"))  # fmt: skip
    assert fewer == 0


def test_a_run_that_is_interrupted_goes_on_with_each_client_s_own(tmp_path: Path) -> None:
    class Impatient(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == 3 and share > 0.5:
                raise KeyboardInterrupt

    plan = small(*DEEPER, LOCAL, EVALUATED, "federation.cohort=2", "federation.rounds=4", "federation.mode=sl",
                 "compression.front_weights.delta=true")  # fmt: skip
    expected = simulate(plan, runs=tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "cut", observers=[Impatient()])
    (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder)
    assert {k: v for k, v in outcome(folder).items() if k != "summary"} == {
        k: v for k, v in outcome(expected).items() if k != "summary"
    }
    assert all(torch.equal(a[n], b[n]) for a, b in zip(own(folder), own(expected), strict=True) for n in a)
