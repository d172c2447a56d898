"""Answers of a run's model: the same as the run's own, whoever answers, and whatever lies beside the images."""

import csv
import io
import json
from pathlib import Path
from statistics import median_high as median

import numpy as np
import pytest
import torch
from helpers import small
from PIL import Image

from splitfed import Predictor, simulate
from splitfed.cli import main as cli
from splitfed.data.sources.base import open_digits
from splitfed.errors import DataError, RunError, SplitfedError
from splitfed.inference.exits import load
from splitfed.inference.run_model import RunModel
from splitfed.model.build import pixel_stats
from splitfed.run.origin import load_data
from splitfed.seeds import Key
from splitfed.server.model import evaluate


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source, _, _ = open_digits()
    for row in range(30):
        place = folder / ("below" if row % 3 == 0 else ".")
        place.mkdir(exist_ok=True)
        source.image(row).save(place / f"{row:02d}.png")
    return folder


def whole(run: Path, images: torch.Tensor) -> torch.Tensor:
    """The probabilities of the whole model, by its own forward pass."""
    model = RunModel.read(run)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in pixel_stats(model.scenario.model))
    with torch.no_grad():
        return model.parts.whole()(images * (255 * std).reciprocal() - mean / std).softmax(1)


def test_it_is_as_right_as_the_run_says(finished: Path) -> None:
    model = RunModel.read(finished)
    data = load_data(model.scenario)
    right = evaluate(model.parts, data.test, 64, model.mean, model.std, model.device, "float32").accuracy
    images = [data.test.source.image(row) for row in range(len(data.test))]
    found = Predictor(finished).predict(images)
    assert sum(one.label == str(int(label)) for one, label in zip(found, data.test.labels, strict=True)) == round(
        right * len(images)
    )


def test_probabilities_are_the_models_to_the_last_bit(finished: Path, photos: Path) -> None:
    found = Predictor(finished, top=10, batch=1).predict(photos)
    for one in found:
        pixels = torch.from_numpy(np.array(Image.open(one.image).convert("RGB"))).permute(2, 0, 1)[None].float()
        expected = whole(finished, pixels)[0]
        assert [one.probabilities[str(digit)] for digit in range(10)] == expected.tolist()
        assert one.label == str(int(expected.argmax()))
        assert list(one.probabilities.values()) == sorted(one.probabilities.values(), reverse=True)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_tokens_that_gates_have_closed_are_none(pool: str, photos: Path, tmp_path: Path) -> None:
    """As in the model's own forward pass: nothing attends to them, and they are not pooled."""
    args = f"model.args={{patch_size: 2, embed_dim: 16, depth: 4, num_heads: 2, global_pool: {pool}}}"
    changes = (
        args,
        "model.cut=2",
        "compression.reducer={kind: semantic_tokens}",
        "federation.rounds=1",
        "data.limit=48",
    )
    run = simulate(small(*changes), runs=tmp_path).folder
    model = RunModel.read(run)
    images = torch.randn(5, 3, 8, 8, generator=Key(0).generator())
    with torch.no_grad():
        tokens = model.parts.front(images)
        assert len(set(tokens.ne(0).any(-1).sum(1).tolist())) > 1  # of several lengths
        found = model.trunk.end(model.trunk.go_on(0, model.trunk.begin(images)))
        assert torch.allclose(found, model.parts.whole()(images), atol=1e-6)


def test_a_folder_is_all_images_in_and_below_it(finished: Path, photos: Path) -> None:
    found = Predictor(finished).predict(photos)
    assert [Path(one.image) for one in found] == sorted(photos.rglob("*.png"))
    assert [one.image for one in Predictor(finished).predict([photos / "01.png"])] == [str(photos / "01.png")]


@pytest.mark.parametrize("measure", ["probability", "margin", "entropy"])
def test_the_threshold_is_kept_to(with_exits: Path, photos: Path, measure: str) -> None:
    def answers(confidence: float) -> list:
        return Predictor(with_exits, confidence=confidence, measure=measure).predict(photos)  # type: ignore[arg-type]

    assert {one.exit for one in answers(0)} == {1}
    assert {one.exit for one in answers(1.01)} == {None}
    assert answers(1.01) == Predictor(with_exits, measure=measure).predict(photos)  # type: ignore[arg-type]
    middle = median(one.confidence for one in answers(0))
    between = answers(middle)
    assert sum(one.exit == 1 for one in between) == 15
    assert all(one.exit is None or one.confidence >= middle for one in between)


def test_an_accuracy_stands_for_the_lowest_confidence_that_reaches_it(with_exits: Path) -> None:
    data = load_data(RunModel.read(with_exits).scenario).validation
    images = [data.source.image(row) for row in range(len(data))]

    def right(**rule: float) -> float:
        found = Predictor(with_exits, **rule).predict(images)  # type: ignore[arg-type]
        return sum(one.label == str(int(label)) for one, label in zip(found, data.labels, strict=True)) / len(images)

    best = right()
    target = right(confidence=0) / 2 + best / 2
    threshold = Predictor(with_exits, accuracy=target).rule.threshold
    assert 0 < threshold < 1
    assert right(accuracy=target) >= target > right(confidence=threshold - 0.2)
    with pytest.raises(RunError, match="no threshold reaches it"):
        Predictor(with_exits, accuracy=min(1.0, best + 0.05))
    with pytest.raises(RunError, match="name one of them"):
        Predictor(with_exits, accuracy=0.5, confidence=0.5)


def test_bytes_and_operations_stand_for_the_highest_confidence_that_keeps_to_them(with_exits: Path) -> None:
    model = RunModel.read(with_exits)
    data, (_, _, judged) = load_data(model.scenario).validation, load(model)
    images = [data.source.image(row) for row in range(len(data))]
    costs = {
        exit: (judged.bytes[place].tolist(), float(judged.operations[place]))
        for place, exit in enumerate((1, 2, 3, None))
    }
    all_bytes, all_operations = sum(costs[None][0]) / len(images), costs[None][1]

    def spent(**rule: float) -> tuple[float, float]:
        exits = [one.exit for one in Predictor(with_exits, **rule).predict(images)]  # type: ignore[arg-type]
        each = [(costs[exit][0][row], costs[exit][1]) for row, exit in enumerate(exits)]
        return tuple(sum(values) / len(images) for values in zip(*each, strict=True))  # type: ignore[return-value]

    for share in (0.3, 0.8):
        assert 0.8 * share * all_bytes < spent(most_bytes=share * all_bytes)[0] <= share * all_bytes
    assert 0.8 * all_operations < spent(most_operations=0.9 * all_operations)[1] <= 0.9 * all_operations
    assert {one.exit for one in Predictor(with_exits, most_bytes=1e6).predict(images)} <= {None, 1, 2, 3}
    with pytest.raises(RunError, match="1 operations an image: no threshold takes so little"):
        Predictor(with_exits, most_operations=1)
    with pytest.raises(RunError, match="an accuracy and bytes an image are asked for"):
        Predictor(with_exits, accuracy=0.5, most_bytes=100)


def test_who_hardly_rises_goes_to_the_end(with_exits: Path, photos: Path) -> None:
    """With a rise that none reaches only the first exit answers."""
    found = Predictor(with_exits, confidence=0.6, rise=2.0).predict(photos)
    first = [one.exit == 1 for one in Predictor(with_exits, confidence=0.6).predict(photos)]
    assert [one.exit == 1 for one in found] == first
    assert {one.exit for one in found} <= {1, 2, None}  # at the second they are given up, or answered


def test_what_is_no_image_harms_no_other(finished: Path, photos: Path, tmp_path: Path) -> None:
    upright = Image.open(photos / "01.png")
    upright.convert("L").save(tmp_path / "grey.png")
    upright.convert("CMYK").save(tmp_path / "inks.tiff")
    exif = upright.getexif()
    exif[0x112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = {Path(one.image).name: one for one in Predictor(finished).predict(tmp_path)}
    good = Predictor(finished).predict(photos / "01.png")[0]
    assert {name for name, one in found.items() if one.problem} == {"broken.png", "empty.jpg", "gone.png"}
    for name in ("grey.png", "turned.png", "inks.tiff"):
        assert found[name].label == good.label, name
    assert found["grey.png"].confidence == pytest.approx(good.confidence, abs=1e-5)
    assert found["turned.png"].confidence == pytest.approx(good.confidence, abs=1e-5)
    assert all("0x" not in (one.problem or "") for one in found.values())


def test_what_is_nowhere_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        Predictor(finished).predict(tmp_path / "photos")
    with pytest.raises(DataError, match="holds no images"):
        Predictor(finished).predict(tmp_path)
    with pytest.raises(RunError, match="no run folder"):
        Predictor(tmp_path)
    with pytest.raises(RunError, match="a rise of confidence"):
        Predictor(finished, rise=0.1)
    with pytest.raises(SplitfedError, match="a confidence of -1"):
        Predictor(finished, confidence=-1)


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["splitfed", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_command_writes_lines_csv_and_json(
    with_exits: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    good = Predictor(with_exits, confidence=0.6, top=2).predict(photos / "01.png")[0]
    (tmp_path / "bad[red].png").touch()
    words = ("predict", with_exits, photos / "01.png", tmp_path, "--confidence", "0.6", "--top", "2")
    assert run_cli(monkeypatch, *words, "--csv") == 1  # one of both cannot be decoded
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == [good.label, ""]
    assert (rows[0]["label_2"], rows[0]["exit"]) == (list(good.probabilities)[1], str(good.exit or ""))
    assert rows[1]["problem"]
    assert run_cli(monkeypatch, *words, "--json") == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == {
        "image": good.image, "label": good.label, "confidence": good.confidence,
        "probabilities": good.probabilities, "exit": good.exit,
    }  # fmt: skip
    assert set(said[1]) == {"image", "problem"}
    assert run_cli(monkeypatch, *words) == 1
    told = capsys.readouterr()
    assert told.out.startswith(f"{good.image}: {good.label} ")
    assert "bad[red].png: " in told.err
    assert run_cli(monkeypatch, "predict", with_exits, photos, "--csv", "--json") == 2
    assert run_cli(monkeypatch, "predict", with_exits, photos, "--measure", "entropy") == 2
    assert "--measure entropy: a measure of confidence is asked for" in capsys.readouterr().err
    whole = Predictor(with_exits, measure="entropy").predict(photos / "01.png")[0]
    assert run_cli(monkeypatch, "predict", with_exits, photos / "01.png", "--measure", "entropy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["confidence"] == whole.confidence != max(whole.probabilities.values())
    assert run_cli(monkeypatch, "predict", with_exits, photos, "--bytes-per-image", "0.2kB", "--csv") == 0
    assert {row["exit"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} > {"1"}
    assert run_cli(monkeypatch, "predict", with_exits, photos, "--bytes-per-image", "much") == 2
    assert "--bytes-per-image much: 'much' is no number of bytes" in capsys.readouterr().err
    assert run_cli(monkeypatch, "exits", with_exits, "--ensemble", "--lr", "0.1") == 2
    assert "--lr: is of heads that are trained now" in capsys.readouterr().err
