"""Exits: what they are fitted to stays as it is, and they belong to it alone."""

from pathlib import Path
from shutil import copytree

import msgpack
import pytest
import torch
from helpers import DEEPER, small
from safetensors.torch import load_file

from splitfed import simulate
from splitfed.errors import RunError
from splitfed.inference.exits import NAME, Exits, fingerprint, heads, load, operations, rest
from splitfed.inference.fitting import fit
from splitfed.inference.run_model import RunModel
from splitfed.inference.tradeoff import tradeoff
from splitfed.run.metrics import read_exits
from splitfed.seeds import Key


def files(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != NAME}


def test_all_else_stays_bit_for_bit_and_they_learn(copied: Path) -> None:
    before = files(copied)
    found = fit(copied, [1, 3], epochs=6, lr=2e-2)
    assert files(copied) == before
    assert found.about.blocks == (1, 3)
    assert all(accuracy > 0.6 for accuracy in found.about.accuracy)  # of ten classes


@pytest.mark.parametrize("heads", ["linear", "cascade"])
def test_the_same_seed_fits_the_same_exits(copied: Path, heads: str) -> None:
    def fitted() -> bytes:
        fit(copied, [1, 2], heads=heads, ensemble=True, epochs=1)  # type: ignore[arg-type]
        return (copied / NAME).read_bytes()

    assert fitted() == fitted()


def test_a_cascade_sees_what_the_head_before_says_without_a_gradient_to_it() -> None:
    exits = Exits([1, 2], 4, 3, 1, heads="cascade", key=Key(0))
    seen = [torch.randn(5, 8), torch.randn(5, 8)]
    second = exits(seen)[1]
    assert not torch.equal(second, exits([seen[0] + 1, seen[1]])[1])
    second.sum().backward()
    assert exits.outputs["1"].weight.grad is None
    assert exits.outputs["2"].weight.grad is not None


def test_the_ensemble_is_the_papers_formula() -> None:
    exits = Exits([1, 2, 3], 4, 3, 1, ensemble=True, key=Key(0))
    assert exits.ensemble is not None
    with torch.no_grad():
        exits.ensemble.weights.normal_(generator=Key(1).generator())
        exits.ensemble.shifts.normal_(generator=Key(2).generator())
    logits = list(torch.randn(3, 5, 3, generator=Key(3).generator()))
    a, c = exits.ensemble.weights, exits.ensemble.shifts
    for m in range(3):
        u = sum(a[m, j].exp() * logits[j].softmax(1).log() for j in range(m + 1)) / (m + 1) + c[m]
        assert torch.allclose(exits.answer(m, logits), u.softmax(1), atol=1e-6)


def test_an_ensemble_is_at_least_as_good_as_its_best_head(copied: Path) -> None:
    alone = fit(copied, [1, 2, 3], epochs=2).about.accuracy
    together = fit(copied, [1, 2, 3], epochs=2, ensemble=True).about.accuracy
    assert together[-1] >= max(alone) - 0.03  # of 100 images


def test_exits_belong_to_their_weights(copied: Path) -> None:
    fit(copied, [1], epochs=1)
    _, about, _ = load(RunModel.read(copied))
    assert (about.round, about.blocks) == (8, (1,))
    with pytest.raises(RunError, match="belong to the weights after round 8, and not to those after round 7"):
        load(RunModel.read(copied, round=7))


def test_broken_files_are_refused_in_a_line(copied: Path) -> None:
    fit(copied, [1], epochs=1)
    whole = (copied / NAME).read_bytes()
    for content in (b"", whole[:100], whole[:-8], whole.replace(b'"heads"', b'"head5"').replace(b"heads", b"head5")):
        (copied / NAME).write_bytes(content)
        with pytest.raises(RunError, match="broken file of exits"):
            load(RunModel.read(copied))
    (copied / NAME).unlink()
    with pytest.raises(RunError, match="has no exits"):
        load(RunModel.read(copied))


@pytest.mark.parametrize(("blocks", "why"), [([0], "1 to 3"), ([4], "1 to 3"), ([1, 1], "once"), ([], "one at least")])
def test_blocks_that_are_none_are_refused(copied: Path, blocks: list[int], why: str) -> None:
    with pytest.raises(RunError, match=why):
        fit(copied, blocks)


@pytest.mark.parametrize(
    "more", [[], ["federation.labels=private"], ["compression.reducer={kind: bottleneck, width: 4}"], ["model.cut=1"]]
)
def test_block_by_block_is_the_whole_model_to_the_last_bit(more: list[str], tmp_path: Path) -> None:
    run = simulate(small(*DEEPER, *more, "federation.rounds=1", "data.limit=48"), runs=tmp_path).folder
    model = RunModel.read(run)
    images, trunk = torch.randn(3, 3, 8, 8, generator=Key(0).generator()), model.trunk
    with torch.no_grad():
        expected, tokens = model.parts.whole()(images), trunk.begin(images)
        for block in range(1, len(trunk) + 1):
            tokens = trunk.block(block, tokens)
            assert rest(trunk, block, tokens).equal(expected)
            tokens = trunk.cross(tokens) if block == trunk.cut else tokens
    assert fingerprint(model) == fingerprint(RunModel.read(run))


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose exits were trained with its model."""
    sizes = ("data.limit=300", "data.test_limit=50", "federation.rounds=2", "checkpoints.keep=3")
    exits = "model.exits={blocks: [1, 2, 3]}"
    return simulate(small(*DEEPER, *sizes, exits), runs=tmp_path_factory.mktemp("joint")).folder


def test_exits_that_were_trained_with_the_model_need_no_more(joint: Path) -> None:
    model = RunModel.read(joint)
    exits, about, judged = load(model)
    assert (about.round, about.blocks, about.epochs) == (2, (1, 2, 3), 0)
    assert read_exits(joint)[2] == pytest.approx(dict(zip(about.blocks, about.accuracy, strict=True)))
    one = {f"exits.{name}": tensor for name, tensor in exits.state_dict().items()}
    state = load_file(joint / "checkpoints" / "round-000002" / "model.safetensors")
    assert all(state[name].equal(tensor) for name, tensor in one.items())
    measured, _ = tradeoff(joint, rates=["run"], limit=20)
    assert measured.blocks == (1, 2)
    sent = (measured.sent["run"][2].up + measured.sent["run"][2].down)[:20]
    # Where an exit of the server may answer, a request says how sure it must be, and an answer which one it was.
    asks, says = (len(msgpack.packb(meta)) - 1 for meta in ({"sure": 0.5}, {"exit_3": "1"}))
    assert (judged.bytes[-1, :20] - sent - asks).abs().max() <= 2  # the number of a request has more digits
    assert judged.bytes[2].equal(judged.bytes[-1] + says)  # after block 3 an image has crossed
    assert not judged.bytes[:2].any()
    assert judged.operations.tolist() == [operations(model, exits, (1, 2, 3))[place] for place in (1, 2, 3, -1)]
    assert judged.operations.diff().gt(0).all()


def test_those_of_an_earlier_round_come_from_its_checkpoint(joint: Path) -> None:
    earlier = RunModel.read(joint, round=1)
    exits, about, _ = load(earlier)
    assert about.round == 1
    assert about.accuracy == pytest.approx(tuple(read_exits(joint)[1].values()))
    assert heads(earlier).outputs["1"].weight.equal(exits.outputs["1"].weight)
    assert not exits.outputs["1"].weight.equal(load(RunModel.read(joint))[0].outputs["1"].weight)


def test_an_ensemble_is_fitted_to_heads_as_they_are(joint: Path, tmp_path: Path) -> None:
    run = Path(copytree(joint, tmp_path / "run"))
    before = heads(RunModel.read(run)).outputs.state_dict()
    found = fit(run, ensemble=True)
    exits, about, _ = load(RunModel.read(run))
    assert found.about == about
    assert about.ensemble
    assert exits.ensemble is not None
    assert exits.ensemble.weights.ne(0).any()
    assert all(exits.outputs.state_dict()[name].equal(tensor) for name, tensor in before.items())
    fit(run, [2], epochs=1)  # others may take their place
    assert load(RunModel.read(run))[0].blocks == (2,)


def test_without_blocks_there_must_be_some(copied: Path) -> None:
    with pytest.raises(RunError, match="no exits were trained with its model: name blocks"):
        fit(copied, ensemble=True)
