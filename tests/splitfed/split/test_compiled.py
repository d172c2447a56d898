"""Compiled blocks compute what they did, in every mode, and a run is the same again."""

import re
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ADC, DEEPER, PLAIN, small, table
from models import newest

from splitfed import Scenario, estimate, simulate
from splitfed.errors import ModelError, ScenarioError, SplitfedError
from splitfed.split.assembly import assemble
from splitfed.split.computing.compiled import check_compiler, compile_blocks, copied
from splitfed.split.mistakes import BEFORE_A_RUN, BEFORE_A_RUN_HERE

HERE = pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler of C++ here")
BOTH = ("training.client.compile=true", "training.server.compile=true")


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    check_compiler("client", torch.device("cpu"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ModelError, match=r"training\.client\.compile: torch needs a compiler of C\+\+"):
        check_compiler("client", torch.device("cpu"))
    with pytest.raises(ModelError, match=r"training\.server\.compile: torch does not compile for mps"):
        check_compiler("server", torch.device("mps"))


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_dry_run_says_so_as_a_run_does(side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine elsewhere it knows nothing."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("shutil.which", lambda name: None)
    plan, told = small(f"training.{side}.compile=true"), []
    for start in (estimate, partial(simulate, runs=tmp_path, observers=())):
        with pytest.raises(SplitfedError) as error:
            start(plan)
        told.append(str(error.value))
    assert told[0].startswith(f"training.{side}.compile: torch needs a compiler of C++")
    assert re.sub(r"^client \d cannot take part: ", "", told[1]) == told[0]
    if side == "client":
        estimate(plan.with_(["engine=deployment"]))


@HERE
@pytest.mark.slow
def test_blocks_compute_what_they_did_and_copies_are_compiled() -> None:
    plain = assemble(small(*DEEPER), 10, pretrained=False).back
    compiled, geometry = deepcopy(plain), assemble(small(*DEEPER), 10, pretrained=False).front.geometry(8, 10)
    before = {name: tensor.clone() for name, tensor in compiled.state_dict().items()}
    assert compile_blocks(list(compiled.blocks), "server", geometry, "float32") > 0
    assert all(tensor.equal(before[name]) for name, tensor in compiled.state_dict().items())
    assert not [one for one in compiled.parameters() if one.grad is not None]
    copy = copied(compiled)
    assert all(block._compiled_call_impl is not None for block in copy.blocks)  # torch has no public way to ask
    for images, tokens in ((8, geometry.tokens), (3, geometry.tokens), (5, 2)):
        made = []
        for part in (plain, compiled, copy):
            given = torch.randn(images, tokens, geometry.width, generator=torch.Generator().manual_seed(images))
            logits = part(given.requires_grad_())
            logits.square().mean().backward()
            made.append((logits, given.grad, *(one.grad for one in part.parameters())))
        for others in made[1:]:
            for one, other in zip(made[0], others, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        for part in (plain, compiled, copy):
            part.zero_grad(set_to_none=True)


@HERE
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("federation.mode=sfl-v1", *ADC), ("federation.mode=psl", "training.precision=bfloat16")],
    ids=["adc", "psl"],
)
def test_a_run_learns_what_it_did_and_the_same_again(more: tuple[str, ...], tmp_path: Path) -> None:
    plan = (*DEEPER, *PLAIN, "federation.rounds=2", "data.limit=100", *more)
    plain = simulate(small(*plan), runs=tmp_path / "plain").folder
    compiled = simulate(small(*plan, *BOTH), runs=tmp_path / "compiled").folder
    for row, other in zip(table(plain / "metrics.csv"), table(compiled / "metrics.csv"), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=2e-2)
    assert "the blocks of the back were compiled in" in (compiled / "log.txt").read_text()
    again = newest(simulate(small(*plan, *BOTH), runs=tmp_path / "again").folder)
    assert all(tensor.equal(again[name]) for name, tensor in newest(compiled).items())


@pytest.mark.parametrize("side", ["client", "server"])
def test_the_place_of_the_key_is_told(side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scenario is read, of what is computed here; whatever machine is elsewhere."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("shutil.which", lambda name: None)
    text = small(f"training.{side}.compile=true").to_yaml()
    (tmp_path / "plan.yaml").write_text(text)
    line = text.splitlines().index("    compile: true") + 1
    load = partial(Scenario.load, tmp_path / "plan.yaml", also=BEFORE_A_RUN_HERE)
    with pytest.raises(ScenarioError, match=rf"plan\.yaml:{line}: training\.{side}\.compile: torch needs a compiler"):
        load()
    with pytest.raises(ScenarioError, match=rf"plan\.yaml:{line}: training\.{side}\.compile: torch needs a compiler"):
        simulate(tmp_path / "plan.yaml", runs=tmp_path)
    Scenario.load(tmp_path / "plan.yaml", also=BEFORE_A_RUN)  # to be run on another machine
    if side == "client":
        load(["engine=deployment"])
        load(["compression.reducer={kind: adc, ratio: 0.3}", "model.cut=1"])  # no block is compiled
    set_ = f"training.{side}.compile=true"
    with pytest.raises(ScenarioError, match=rf"^--set {set_}: training\.{side}\.compile: torch needs a compiler"):
        load([set_])
