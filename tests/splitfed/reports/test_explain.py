"""Explanations: what they say against what a run really planned, what is drawn, and what TensorBoard finds."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ADC, small
from PIL import Image
from pydantic import TypeAdapter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from splitfed import explain, simulate
from splitfed.cli import main as cli
from splitfed.compression.reducers.adc import Adc
from splitfed.compression.reducers.base import Plan, View
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.errors import DataError, RunError
from splitfed.reports.explanation.explain import Explanation
from splitfed.reports.explanation.picture import dimmed, draw, layout, png
from splitfed.reports.explanation.tensorboard import show_in_tensorboard
from splitfed.reports.live.tensorboard import Curves, curves_of
from splitfed.run.ledger import Sizes
from splitfed.run.observer import Started
from splitfed.seeds import Key


@pytest.fixture(scope="module")
def planned() -> dict[tuple, Plan]:
    """Every plan that the run made, by its step's key."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, planned: dict[tuple, Plan]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        plan = Adc.plan

        def noted(self: Adc, view: View, key: Key) -> Plan:
            planned[key.path] = plan(self, view, key)
            return planned[key.path]

        patch.setattr(Adc, "plan", noted)
        found = simulate(small(*ADC, "data.augment=flip"), runs=tmp_path_factory.mktemp("runs"))
    return found.folder


def made(kept: list[list[float]], groups: list[int], labels: list[int]) -> Explanation:
    """White images of 2 by 2 patches of 16 pixels, of which this is kept."""
    return Explanation(
        small("compression.reducer={kind: adc, ratio: 0.4}"), 3, "train", 0, torch.ones(len(kept), 3, 32, 32),
        torch.tensor(labels), ["fish", "a_very_long_name_for_a_bird", "cow"], torch.tensor(kept), torch.tensor(groups),
        torch.full((len(kept), 5), 0.2), 1, (16, 16), (2, 2), 80, Sizes(4, 3, 2, 1),
    )  # fmt: skip


def same_group(groups: torch.Tensor) -> torch.Tensor:
    return groups[:, None] == groups


@pytest.mark.parametrize("client", [0, 2])
def test_it_is_what_the_client_plans_in_the_next_round(run: Path, planned: dict[tuple, Plan], client: int) -> None:
    found = explain(run, round=1, client=client)
    real = planned["step", 2, client, 1, "plan"]
    assert same_group(found.groups).equal(same_group(real.merging.assignment))  # type: ignore[attr-defined]
    for sample, cluster in enumerate(real.merging.assignment.tolist()):  # type: ignore[attr-defined]
        assert found.kept[sample].nonzero().flatten().equal(real.positions[cluster])  # type: ignore[attr-defined]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_each_group_keeps_the_tokens_that_its_mean_attention_favours(run: Path, split: str) -> None:
    found = explain(run, split=split)  # type: ignore[arg-type]
    assert found.round == 2
    assert len(found.images) == 11 if split == "validation" else 16
    assert found.attention is not None
    for rows in found.members:
        mean = found.attention[rows].double().mean(0).tolist()
        best = sorted(range(1, 5), key=lambda token: -mean[token])[:2]  # of 4 patches, as 3 of 5 tokens are kept
        assert {tuple(line.nonzero().flatten().tolist()) for line in found.kept[rows]} == {(0, *sorted(best))}
    paid = [sum(a[t] for t in range(1, 5) if k[t]) / sum(a[1:]) for a, k in zip(
        found.attention.tolist(), found.kept.tolist(), strict=True)]  # fmt: skip
    assert found.attention_kept == pytest.approx(sum(paid) / len(paid))


def test_merged_pairs_and_groups_of_several_classes_are_counted() -> None:
    found = made([[1.0] * 5] * 7, [0, 1, 0, 0, 1, 2, 2], [0, 1, 0, 2, 1, 0, 1])
    assert found.mixed == 2
    assert found.mixed_pairs == pytest.approx(3 / 5)  # (0,3) and (2,3) of three pairs, (1,4) alike, (5,6)
    assert made([[1.0] * 5] * 2, [0, 1], [0, 1]).mixed_pairs is None


@pytest.mark.parametrize("section", [
    {"kind": "none"}, {"kind": "adc", "ratio": 0.3}, {"kind": "merge_samples", "kept_samples": 0.5},
    {"kind": "discard_tokens", "kept_tokens": 0.5}, {"kind": "topk", "ratio": 0.2},
    {"kind": "random_topk", "ratio": 0.2, "alpha": 0.2},
])  # fmt: skip
def test_what_plans_say_is_what_autograd_finds(section: dict) -> None:
    generator = Key(0).generator()
    activations = torch.randn(10, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    attention = torch.randn(10, 9, generator=generator).softmax(1)
    reducer = TypeAdapter(ReducerConfig).validate_python(section).build()
    plan = reducer.plan(View(activations.detach(), 3, lambda: attention, torch.nn.Identity()), Key(1))
    reaches = torch.stack([
        torch.autograd.grad(smashed.sum(), activations, retain_graph=True)[0] != 0
        for smashed in plan.reduce(activations)
    ])  # fmt: skip
    assert plan.kept(10, 9).double().equal(reaches.any(0).double().mean(2))
    into = reaches.flatten(2).any(2).double()  # [T, B]
    assert same_group(plan.groups(10)).equal((into.T @ into) > 0)


def test_a_plan_that_says_nothing_keeps_all_and_merges_none() -> None:
    class Bare(Plan):
        def reduce(self, activations: torch.Tensor) -> torch.Tensor:
            return activations

        def targets(self, labels: torch.Tensor, classes: int) -> torch.Tensor:
            return labels

    assert Bare().kept(2, 3).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert Bare().groups(3).tolist() == [0, 1, 2]


def test_the_image_is_what_the_front_saw_and_darker_exactly_where_tokens_are_discarded(run: Path) -> None:
    found = explain(run)
    original = found.images.permute(0, 2, 3, 1).numpy()
    assert original.max() == pytest.approx(1.0)
    assert original.min() == pytest.approx(0.0, abs=1e-6)
    for sample in range(len(original)):
        shown = dimmed(found, sample)
        for y, x in np.ndindex(8, 8):
            kept = bool(found.kept[sample, 1 + y // 4 * 2 + x // 4])
            dark = (shown[y, x] < original[sample, y, x]).all()
            assert (
                np.array_equal(shown[y, x], original[sample, y, x])
                if kept
                else dark or original[sample, y, x].sum() < 1e-5
            )


def test_the_file_shows_discarded_patches_dark() -> None:
    kept = [[1.0, 1, 0, 0, 1], [1.0, 1, 0, 0, 1], [1.0, 0, 0, 1, 1]]
    found = made(kept, [0, 0, 1], [0, 1, 2])
    figure = draw(found, 16)
    pixels = np.asarray(Image.open(BytesIO(png(figure))).convert("L"), dtype=float) / 255
    height, width = pixels.shape
    assert width == 990
    (line,) = layout(found, 16)
    images = [figure.axes[place] for place in (0, 1, 3)]  # a map stands after each block
    assert [block.shown for block in line] == [[0, 1], [2]]
    for sample, axes in enumerate(images):
        box = axes.get_position()
        for patch in range(4):
            left = int(width * (box.x0 + box.width * (0.05 + 0.5 * (patch % 2))))
            top = int(height * (1 - box.y1 + box.height * (0.05 + 0.5 * (patch // 2))))
            of = pixels[top : top + int(0.4 * box.height * height), left : left + int(0.4 * box.width * width)]
            whole = bool(kept[sample][1 + patch])
            assert np.median(of) == pytest.approx(1.0 if whole else 0.3, abs=0.02)
            assert (of.std() < 1e-3) == whole, "what is discarded is hatched"


def test_a_tiny_image_is_made_larger_and_what_is_black_and_discarded_is_hatched() -> None:
    """Digits are mostly black, and nothing is darker than that."""
    found = replace(made([[1.0, 1, 0, 0, 1]], [0], [0]), images=torch.zeros(1, 3, 8, 8), patch=(4, 4))
    large = dimmed(replace(found, images=torch.rand(1, 3, 8, 8)), 0, 8)
    assert large.shape == (64, 64, 3)
    figure = draw(found, 16)
    pixels = np.asarray(Image.open(BytesIO(png(figure))).convert("L"), dtype=float) / 255
    height, width = pixels.shape
    box = figure.axes[0].get_position()
    left, right = (int(width * x) for x in (box.x0 + 0.55 * box.width, box.x0 + 0.95 * box.width))
    top, bottom = (int(height * (1 - y)) for y in (box.y1 - 0.05 * box.height, box.y1 - 0.45 * box.height))
    assert pixels[top:bottom, left:right].std() > 0.1, "the second patch, which is discarded"
    assert pixels[top:bottom, int(width * box.x0) + 6 : left - 20].std() < 0.01, "the first one, which is kept"
    assert "dark, hatched: discarded" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_shares_of_tokens_become_brightness() -> None:
    found = made([[1.0, 0.5, 0.25, 0.0, 0.5]], [0], [0])
    shown = dimmed(found, 0)[::16, ::16, 0]
    assert shown.ravel().tolist() == pytest.approx([1.0, 0.65, 0.3, 1.0])


def test_merged_samples_come_first_in_lines_that_are_filled() -> None:
    groups = [0, 1, 1, 2, 2, 2, 3, 4] + [5] * 8
    found = made([[1.0] * 5] * 16, groups, [0] * 16)
    lines = layout(found, 16)
    assert all(sum(block.cells for block in line) <= 6 for line in lines)
    shown = [[found.groups[block.shown].unique().tolist() for block in line] for line in lines]
    assert shown == [[[1], [0]], [[2], [3]], [[5]], [[4]]]
    (large,) = lines[2]
    assert (len(large.shown), large.members) == (5, 8)
    assert sum(len(block.shown) for line in layout(found, 4) for block in line) == 4
    text = [text.get_text() for text in draw(found, 16).texts]
    assert "+3 images" in text
    assert len([one for one in text if one == "fish"]) == 13


def test_no_two_texts_overlap() -> None:
    found = made([[1.0, 1, 0, 0, 1]] * 9, [0, 0, 0, 0, 0, 1, 1, 2, 3], [1] * 9)
    figure = draw(found, 9)
    figure.set_dpi(300)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes.append(figure.legends[0].get_window_extent())
    for n, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0
        assert one.x1 <= figure.bbox.x1
        assert not any(one.overlaps(other) for other in boxes[:n])


def images_in(folder: Path) -> dict[int, bytes]:
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == ["explain/tokens"]
    return {event.step: event.encoded_image_string for event in events.Images("explain/tokens")}


def test_tensorboard_finds_one_image_a_round_and_its_curves_stay(run: Path, tmp_path: Path) -> None:
    folder = run / "tensorboard"
    (curves,) = curves_of(run).glob("events*")
    before = curves.read_bytes()
    for number in (2, 1, 2):
        picture = png(draw(explain(run, round=number), 4))
        show_in_tensorboard(run, number, picture)
        assert images_in(folder / "explain")[number] == picture
    assert list(images_in(folder / "explain")) == [1, 2]
    assert curves.read_bytes() == before
    assert list(curves_of(run).iterdir()) == [curves]

    show_in_tensorboard(tmp_path, 7, picture)
    resumed = Curves()
    resumed.started(Started("small", tmp_path, 9, "inline", 0, [], None))
    resumed.close()
    assert images_in(tmp_path / "tensorboard" / "explain") == {7: picture}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["splitfed", "explain", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_prints_and_draws(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new" / "tokens.png"
    assert command(monkeypatch, run, "--out", out, "--images", 3, "--client", 1, "--round", 1, "--no-tensorboard") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "small after round 1, adc: a batch of client 1, its first of round 2" in said
    assert "samples 16 10 62.5 %" in said
    assert "tokens of a sample 5 3 60.0 %" in said
    assert str(out) in said
    assert Image.open(out).size[0] == 990
    assert command(monkeypatch, run, "--set", "compression.reducer={kind: topk, ratio: 0.1}", "--no-tensorboard") == 0
    assert "values of a sample 80 8 10.0 %" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("arguments", "said"), [
    (["--round", "9"], "--round 9: {run} holds the checkpoints of 1, 2 alone"),
    (["--client", "3"], "--client 3: there are clients 0 to 2"),
    (["--client", "1", "--split", "validation"], "--client: clients hold training images"),
    (["--out", "tokens.gif"], "--out tokens.gif: pictures are named"),
    (["--set", "compression.reducer=none"], "{run}: its reducer, none, keeps every token"),
    (["--set", "compression.reducer={kind: c3sl, r: 4}"], "{run}: its reducer, c3sl, keeps every token"),
    (["--set", "data.path=/nowhere"], "data.path: nothing to load at '/nowhere'"),
    (["--set", "model.args.embed_dim=32"], "{run}: its checkpoint does not fit the scenario's model: size mismatch"),
    (["--set", "model.cutt=1"], "--set model.cutt=1: model.cutt: unknown key, did you mean 'cut'?"),
])  # fmt: skip
def test_mistakes_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    assert command(monkeypatch, run, "--no-tensorboard", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(said.format(run=run))
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_folders_that_hold_no_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no scenario\.yaml in it, so this is no run folder"):
        explain(tmp_path)
    (tmp_path / "scenario.yaml").write_text((run / "scenario.yaml").read_text())
    with pytest.raises(RunError, match="has no checkpoint yet"):
        explain(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "round-000001"
    checkpoint.mkdir(parents=True)
    with pytest.raises(RunError, match="broken checkpoint"):
        explain(tmp_path)
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="broken checkpoint"):
        explain(tmp_path)


def test_data_of_other_classes_are_refused(run: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    with pytest.raises(DataError, match=r"holds other data than the run began with: it has 8 training images, not 1"):
        explain(run, overrides=[f"data.path={tmp_path}"])
    with pytest.raises(RunError, match=r"was trained on 10 classes, and data.path: \S+ has 2"):
        explain(run, overrides=[f"data.path={tmp_path}", "data.fingerprint=null"])
