"""What a client is handed: enough to answer as the run does up to the cut, and nothing of the server's machine."""

import json
import struct
from pathlib import Path
from shutil import copytree

import pytest
import torch

from splitfed.errors import RunError
from splitfed.inference.deciding import Judged
from splitfed.inference.exits import load
from splitfed.inference.fitting import fit
from splitfed.inference.rates import rates
from splitfed.inference.remote.bundle import name_of, pack_bundle, pack_norms, patched, read_bundle
from splitfed.inference.run_model import RunModel
from splitfed.seeds import Key


def bundle(run: Path, *overrides: str) -> bytes:
    model = RunModel.read(run, overrides=list(overrides))
    exits, _, judged = load(model)
    return pack_bundle(model, exits, judged, rates(model.scenario.compression, ["run"]), 8)


@pytest.mark.parametrize("heads", ["linear", "cascade"])
def test_exits_before_the_cut_answer_as_they_did(finished: Path, tmp_path: Path, heads: str) -> None:
    """Those after it are the server's, also where an ensemble weighs all of them."""
    run = Path(copytree(finished, tmp_path / "run"))
    fit(run, [1, 2, 3], epochs=1, heads=heads, ensemble=True)  # type: ignore[arg-type]
    model = RunModel.read(run)
    exits, _, _ = load(model)
    (tmp_path / "bundle").write_bytes(bundle(run))
    found = read_bundle(tmp_path / "bundle")
    assert found.exits is not None
    assert found.exits.blocks == (1, 2)
    images = torch.randn(3, 3, 8, 8, generator=Key(0).generator())
    logits, expected = [], []
    with torch.no_grad():
        for trunk, heads_, said in ((found.trunk, found.exits, logits), (model.trunk, exits, expected)):
            tokens = trunk.begin(images)
            for block in (1, 2):
                tokens = trunk.block(block, tokens)
                said.append(heads_.head(block - 1, heads_.look(tokens), said[-1] if said else None))
        for place in (0, 1):
            assert found.exits.answer(place, logits).equal(exits.answer(place, expected))
    assert (found.classes, found.mean, found.std) == (model.classes, model.mean, model.std)


def test_how_all_exits_do_is_told_and_an_older_reader_finds_those_of_the_front(
    with_exits: Path, tmp_path: Path
) -> None:  # fmt: skip
    model = RunModel.read(with_exits)
    _, _, judged = load(model)
    content = bundle(with_exits)
    (tmp_path / "bundle").write_bytes(content)
    found = read_bundle(tmp_path / "bundle")
    assert found.behind == (3,)
    for name in Judged.__slots__:
        assert found.judged is not None
        assert getattr(found.judged, name).equal(getattr(judged, name))
    (tmp_path / "older").write_bytes(content.replace(b'\\"behind\\"', b'\\"b3hind\\"'))
    older = read_bundle(tmp_path / "older")
    assert older.behind == ()
    assert older.judged is not None
    assert older.judged.fits(2)
    assert older.judged.confidences.equal(judged.confidences[:, :2])


@pytest.mark.parametrize("blocks", [b"[2]", b"[4]", b"[0]", b"[9]", b"[3, 3]", b"[{]", b"3"])
def test_exits_of_the_server_follow_its_blocks(with_exits: Path, tmp_path: Path, blocks: bytes) -> None:
    content = bundle(with_exits)
    known = b'\\"behind\\": {\\"blocks\\": [3]'
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = content[8:start].replace(known, known.replace(b"[3]", blocks))
    assert header != content[8:start]
    (tmp_path / "bundle").write_bytes(struct.pack("<Q", len(header)) + header + content[start:])
    with pytest.raises(RunError, match="cannot be read"):
        read_bundle(tmp_path / "bundle")


def test_its_name_is_that_of_its_content(with_exits: Path, tmp_path: Path) -> None:
    first = bundle(with_exits)
    assert bundle(with_exits) == first
    (tmp_path / "bundle").write_bytes(first)
    assert read_bundle(tmp_path / "bundle").name == name_of(first)
    assert name_of(bundle(with_exits, "model.cut=3")) != name_of(first)


def test_with_other_norms_it_is_what_it_would_be_elsewhere(with_exits: Path, tmp_path: Path) -> None:
    model, first = RunModel.read(with_exits), bundle(with_exits)
    exits, _, judged = load(model)
    norms = {f"front.{name}": tensor for name, tensor in model.parts.front.state_dict().items() if ".norm" in name}
    assert norms
    assert patched(first, pack_norms(norms)) == first
    for tensor in norms.values():  # the model's own
        tensor.add_(0.5)
    other = pack_bundle(model, exits, judged, rates(model.scenario.compression, ["run"]), 8)
    content = pack_norms({**norms, "back.norm.weight": torch.ones(16)})
    assert patched(first, content) == other != first
    assert b"back.norm" not in content
    assert patched(other, pack_norms({})) == other


@pytest.mark.parametrize(
    "norms",
    [
        b"", b"\xff" * 40, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}"[:1], struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 40000) + b"[" * 40000,
        *(
            struct.pack("<Q", len(text)) + text + b"\0" * 64
            for text in (
                json.dumps({"front.blocks.0.norm1.weight": said}).encode()
                for said in (
                    None, {}, {"dtype": "F32", "shape": [16], "data_offsets": [0, 999]},
                    {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]},
                    {"dtype": "F32", "shape": [16], "data_offsets": ["0", "64"]},
                    {"dtype": "F32", "shape": [16], "data_offsets": [0, 60]},
                    {"dtype": "F16", "shape": [32], "data_offsets": [0, 64]},
                )
            )
        ),
    ],
)  # fmt: skip
def test_norms_of_anything_else_are_refused(with_exits: Path, norms: bytes) -> None:
    with pytest.raises(ValueError, match="norms that are not of this front"):
        patched(bundle(with_exits), norms)


def test_it_holds_no_back_and_no_folder_of_the_server(with_exits: Path, tmp_path: Path) -> None:
    content = bundle(with_exits, f"data.path={tmp_path / 'images'}")
    assert str(tmp_path).encode() not in content
    length = struct.unpack("<Q", content[:8])[0]
    names = set(json.loads(content[8 : 8 + length])) - {"__metadata__"}
    assert {name.split(".")[0] for name in names} == {"front", "exits", "judged", "behind"}
    assert {name for name in names if name.startswith("exits.")} == {
        f"exits.outputs.{block}.{own}" for block in (1, 2) for own in ("weight", "bias")
    }
    assert not [name for name in names if name.startswith(("front.blocks.2", "front.blocks.3", "front.head"))]
    (tmp_path / "bundle").write_bytes(content)
    assert all(parameter.is_meta for parameter in read_bundle(tmp_path / "bundle").trunk.back.blocks.parameters())


def test_exits_may_come_without_how_they_do(with_exits: Path, tmp_path: Path) -> None:
    model = RunModel.read(with_exits)
    rate = rates(model.scenario.compression, ["run"])
    (tmp_path / "bundle").write_bytes(pack_bundle(model, load(model)[0], None, rate, 8))
    found = read_bundle(tmp_path / "bundle")
    assert found.exits is not None
    assert found.judged is None


def test_what_this_version_cannot_read_is_told(with_exits: Path, tmp_path: Path) -> None:
    content, file = bundle(with_exits), tmp_path / "bundle"
    for other in (b"", b"x" * 100, content[:1000], content.replace(b'\\"format\\": 1', b'\\"format\\": 2')):
        assert other != content
        file.write_bytes(other)
        with pytest.raises(RunError, match="cannot be read"):
            read_bundle(file)
