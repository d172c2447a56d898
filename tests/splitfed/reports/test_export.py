"""Exported models: what timm makes of the file, what the card says, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ADC, small, table
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from splitfed import Exported, __version__, export, simulate
from splitfed.cli import main as cli
from splitfed.data.dataset import load
from splitfed.errors import RunError
from splitfed.model.build import build, split, timm
from splitfed.run.checkpoint import Checkpoints
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.simulation import Result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return simulate(small(*ADC, "checkpoints.keep=3"), runs=tmp_path_factory.mktemp("runs"))


def load_in_timm(made: Exported, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Run the line that was printed, beside the file as its reader would be."""
    monkeypatch.chdir(made.weights.parent)
    return eval(made.create, {"timm": timm}).eval()


def test_images(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the test images as the card says that they are prepared, and their labels."""
    scenario = Scenario.load(run / "scenario.yaml")
    images = load(scenario.data, 8, scenario.federation.clients, Key(scenario.seed).at("data")).test
    return (images.pixels(torch.arange(len(images))) / 255 - 0.5) / 0.5, images.labels


test_images.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("round", [None, 0, 1])
def test_timm_computes_what_front_and_back_do(
    result: Result, round: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export(result.folder, tmp_path / "model.safetensors", round=round)
    scenario = Scenario.load(result.folder / "scenario.yaml")
    front, back = split(build(scenario.model, 10, pretrained=False, key=Key(1)), 1)
    chosen = 2 if round is None else round
    state = load_file(result.folder / "checkpoints" / f"round-{chosen:06d}" / "model.safetensors")
    for half in (front, back):
        half.load_state_dict({name: state[name] for name in half.state_dict()})
    images, _ = test_images(result.folder)
    with torch.inference_mode():
        expected = back.eval()(front.eval()(images))
        found = load_in_timm(made, monkeypatch)(images)
    assert made.round == chosen
    assert torch.equal(found, expected)


def test_its_accuracy_is_that_of_the_summary(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_in_timm(export(result.folder, tmp_path / "model.safetensors"), monkeypatch)
    images, labels = test_images(result.folder)
    with torch.inference_mode():
        right = int((model(images).argmax(1) == labels).sum())
    assert right / len(labels) == result.summary.test_accuracy


def test_a_missing_or_strange_tensor_would_not_load(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    made = export(result.folder, tmp_path / "model.safetensors")
    state = load_file(made.weights)
    for changed in ({n: t for n, t in state.items() if n != "norm.bias"}, {**state, "more": torch.ones(1)}):
        save_file(changed, made.weights)
        with pytest.raises(RuntimeError, match=r"norm\.bias|more"):
            load_in_timm(made, monkeypatch)


def test_arguments_are_in_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scenario gives to timm as it is: numbers, booleans and text."""
    more = ["model.args.qkv_bias=false", "model.args.global_pool=avg", "model.args.init_values=1e-3"]
    run = simulate(small(*more, "federation.rounds=1"), runs=tmp_path)
    model = load_in_timm(export(run.folder, tmp_path / 'quoted "name".safetensors'), monkeypatch)
    assert model.global_pool == "avg"
    assert model.blocks[0].attn.qkv.bias is None
    images, labels = test_images(run.folder)
    with torch.inference_mode():
        assert int((model(images).argmax(1) == labels).sum()) / len(labels) == run.summary.test_accuracy


def test_the_file_says_what_it_is_and_is_the_same_twice(result: Result, tmp_path: Path) -> None:
    one, two = (export(result.folder, tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.weights.read_bytes() == two.weights.read_bytes()
    assert one.sha256 == hashlib.sha256(one.weights.read_bytes()).hexdigest()
    with safe_open(one.weights, framework="pt") as file:
        about = file.metadata()
    assert about["format"] == "pt"
    assert about["splitfed_version"] == __version__
    assert (about["scenario"], about["model"], about["round"]) == ("small", "vit_tiny_patch16_224", "2")
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]


def test_the_card_tells_of_the_run(result: Result, tmp_path: Path) -> None:
    made = export(result.folder, tmp_path / "model.safetensors")
    text = made.card.read_text()
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "timm"
    (found,) = about["model-index"][0]["results"][0]["metrics"]
    assert found["value"] == result.summary.test_accuracy
    assert made.create in body
    assert made.sha256 in body
    settings = body.partition("```yaml\n")[2].partition("```")[0]
    assert Scenario.parse(settings) == Scenario.load(result.folder / "scenario.yaml")
    ledger = table(result.folder / "ledger.csv")
    for plane, name in (("data", "cut"), ("control", "control")):
        sent = sum(int(row["sent_bytes"]) for row in ledger if row["plane"] == plane)
        row = next(line for line in body.splitlines() if line.startswith(f"| {name} | both"))
        assert f"{sent / 1000:.2f} kB" in row or f"{sent / 1e6:.2f} MB" in row


def test_the_model_says_what_its_images_are(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    made = export(result.folder, tmp_path / "model.safetensors")
    found = timm.data.resolve_model_data_config(load_in_timm(made, monkeypatch))
    assert (found["input_size"], found["crop_pct"], found["mean"]) == ((3, 8, 8), 1.0, (0.5, 0.5, 0.5))
    config = json.loads(made.config.read_text())
    assert config["num_classes"] == 10
    assert config["label_names"] == [str(digit) for digit in range(10)]


def test_beside_its_config_timm_loads_the_folder(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    made = export(result.folder, tmp_path / "model.safetensors")
    by_line = load_in_timm(made, monkeypatch)
    made.config.rename(tmp_path / "config.json")
    whole = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images, _ = test_images(result.folder)
    with torch.inference_mode():
        assert torch.equal(whole(images), by_line(images))
    assert whole.pretrained_cfg["input_size"][1:] == (8, 8)
    assert list(whole.pretrained_cfg["label_names"]) == [str(digit) for digit in range(10)]


# What splitfed itself does where torch does not fit torchvision, in two lines: else timm cannot be imported at all.
DECLARED = """\
try:
    import timm
except RuntimeError:
    import torch
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def test_the_lines_of_the_card_predict_without_splitfed(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    made = export(result.folder, tmp_path / 'a "model".safetensors')
    lines = made.card.read_text().partition("```python\n")[2].partition("```")[0]
    pixels = torch.randint(0, 256, (3, 8, 8), generator=Key(3).generator(), dtype=torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    model = load_in_timm(made, monkeypatch)
    with torch.inference_mode():
        expected = int(model((pixels / 255 - 0.5).unsqueeze(0) / 0.5).argmax())
    code = DECLARED + lines + "\nimport sys\nassert 'splitfed' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.returncode) == (f"{expected}\n", 0), done.stderr


def test_the_card_of_an_earlier_round_claims_no_test_accuracy(result: Result, tmp_path: Path) -> None:
    made = export(result.folder, tmp_path / "model.safetensors", round=1)
    text = made.card.read_text()
    assert "model-index" not in text
    assert "| test | not measured after this round |" in text
    sent = sum(int(r["sent_bytes"]) for r in table(result.folder / "ledger.csv") if int(r["round"]) <= 1)
    row = next(line for line in text.splitlines() if line.startswith("| total"))
    assert f"{sent / 1000:.2f} kB" in row or f"{sent / 1e6:.2f} MB" in row


def test_a_run_that_was_interrupted_can_be_exported(result: Result, tmp_path: Path) -> None:
    shutil.copytree(result.folder, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    text = export(tmp_path / "run", tmp_path / "model.safetensors").card.read_text()
    assert "| test | not measured after this round |" in text


def test_a_card_names_no_folder_of_the_machine(result: Result, tmp_path: Path) -> None:
    shutil.copytree(result.folder, tmp_path / "run")
    weights = tmp_path / "private" / "start.safetensors"
    path = tmp_path / "run" / "scenario.yaml"
    path.write_text(path.read_text().replace("\n  weights: null", f"\n  weights: {weights}"))
    text = export(tmp_path / "run", tmp_path / "model.safetensors").card.read_text()
    assert "weights: start.safetensors" in text
    assert "private" not in text


def test_a_reducers_own_layers_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["compression.reducer={kind: bottleneck, width: 4}", "federation.rounds=1"]
    run = simulate(small(*changes), runs=tmp_path)
    monkeypatch.setattr("sys.argv", ["splitfed", "export", str(run.folder), str(tmp_path / "model.safetensors")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "model.halves.safetensors: the reducer's own layers" in shown
    state = Checkpoints(run.folder).model(1)
    inside, beside = (load_file(tmp_path / f"model{middle}.safetensors") for middle in ("", ".halves"))
    assert set(inside).isdisjoint(beside)
    assert set(inside) | set(beside) == set(state)
    assert all(name.startswith(("encoder.", "decoder.")) for name in beside)
    assert all(torch.equal(tensor, state[name]) for name, tensor in {**inside, **beside}.items())
    monkeypatch.chdir(tmp_path)
    eval(shown.splitlines()[-1], {"timm": timm})
    text = (tmp_path / "model.md").read_text()
    assert "model-index" not in text
    assert "are not in it" in text


def test_nothing_is_replaced_unless_asked(result: Result, tmp_path: Path) -> None:
    (tmp_path / "model.md").write_text("mine")
    with pytest.raises(RunError, match=r"model\.md: exists; .*--force"):
        export(result.folder, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.md"]
    assert (tmp_path / "model.md").read_text() == "mine"
    made = export(result.folder, tmp_path / "model.safetensors", force=True)
    assert made.card.read_text() != "mine"


def test_what_cannot_be_exported_is_told_in_a_line(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(result.folder / "scenario.yaml", empty)
    here, run = str(tmp_path / "model.safetensors"), str(result.folder)
    for arguments, told in (
        ([str(tmp_path / "none"), here], "no run folder"),
        ([str(empty), here], "has no checkpoint yet"),
        ([run, here, "--round", "9"], "--round 9: "),
        ([run, str(tmp_path / "model.pt")], "*.safetensors"),
        ([run, str(tmp_path / "none" / "model.safetensors")], "cannot be written"),
        ([run, str(tmp_path / "scenario.yaml" / "model.safetensors")], "cannot be written"),
        ([run, here, "--set", "data.path=" + str(empty)], "data.path"),
        ([run, here, "--set", "model.args.depth=3"], "does not fit"),
    ):
        (tmp_path / "scenario.yaml").write_text("a file, not a folder")
        monkeypatch.setattr("sys.argv", ["splitfed", "export", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        error = capsys.readouterr().err
        assert end.value.code == 2, arguments
        assert told in error
        assert len(error.splitlines()) == 1, error
        assert not Path(here).exists()


def test_exits_are_left_out(tmp_path: Path) -> None:
    run = simulate(small("model.exits={blocks: [1]}", "federation.rounds=1"), runs=tmp_path).folder
    made = export(run, tmp_path / "model.safetensors")
    assert made.halves is None
    assert not [name for name in load_file(made.weights) if name.startswith("exits")]
