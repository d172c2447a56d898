"""Pictures: what is drawn, asked of matplotlib's own objects, and the files that they become."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers import few
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from splitfed.errors import RunError
from splitfed.reports.study.groups import Group, Run, flat, group
from splitfed.reports.study.labels import distinct, short
from splitfed.reports.study.looks import STYLE, look
from splitfed.reports.study.methods import families, uncompressed
from splitfed.reports.study.plots import curves, draw, factors, roles, save, short_labels
from splitfed.reports.units import size
from splitfed.run.ledger import COLUMNS
from splitfed.run.metrics import HEADER, Metrics
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario

SCENARIO = """
data: {{path: digits}}
compression:
  reducer: {reducer}
  smashed: {{codec: {codec}}}
  targets: {{codec: {{kind: float32}}}}
  cut_gradient: {{codec: {{kind: float32}}}}
  front_weights: {{codec: {of_weights}}}
budget: {{kind: cut_bytes, bytes: {budget}}}
"""
FLOAT = "{kind: float32}"


def finished(
    root: Path, accuracy: list[float | None], sent: int, *, reducer: str = "{kind: none}", codec: str = FLOAT,
    of_weights: str = FLOAT, budget: int = 1, name: str = "one", wasted: int = 0, weights: int = 0,
) -> Run:  # fmt: skip
    """A run that sent so many cut bytes in each round; uncompressed it would have been 1000, with weights 2400."""
    folder = root / f"{name}-{len(list(root.iterdir()))}"
    folder.mkdir()
    (folder / "scenario.yaml").write_text(
        SCENARIO.format(reducer=reducer, codec=codec, of_weights=of_weights, budget=budget)
    )
    rows = [
        Metrics(n, 1.0, None, value, n * sent, n * (sent + weights), 1.0, 0, 0, 1, 1, 0.1, 0.1)
        for n, value in enumerate(accuracy, 1)
    ]
    (folder / "metrics.csv").write_text(HEADER + "".join(row.line() for row in rows))
    ledger = [
        f"1,1,0,up,data,smashed,9,9,9,{sent}", "1,1,0,up,data,envelope,9,9,9,5", "1,1,0,up,control,metrics,9,9,9,2",
        "1,1,0,up,control,front_weights,9,9,9,40", "1,1,0,down,control,front_weights,9,9,9,30",
    ]  # fmt: skip
    (folder / "ledger.csv").write_text("\n".join([",".join(COLUMNS), *ledger]) + "\n")
    count = len(accuracy)
    summary = Summary(
        name, 0, "inline", count, accuracy[-1] or 0.0, count * sent, count * (sent + weights) + wasted, wasted,
        count * 1000, 1.0, 1.0, 1.0, 1.0, None, count * 2400, "rounds", "none", "sfl-v2",
    )  # fmt: skip
    return Run(folder, summary)


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): tuple(map(list, line.get_data())) for line in drawn}  # type: ignore[misc]


def legend(figure: Figure) -> list[str]:
    (box,) = figure.legends
    return [text.get_text() for text in box.get_texts()]


def test_curves_by_simulated_time_stand_where_the_rounds_ended(tmp_path: Path) -> None:
    runs = [finished(tmp_path, [0.1, 0.4], 100), finished(tmp_path, [0.3, 0.5], 300)]
    for run, pace in zip(runs, (60, 120), strict=True):
        rows = [replace(row, simulated_seconds=float(pace * row.round)) for row in run.rounds]
        (run.folder / "metrics.csv").write_text(HEADER + "".join(row.line() for row in rows))
    group = Group("a", [Run(run.folder, run.summary) for run in runs])
    (line,) = lines(curves([group], "simulated")).values()
    assert line == ([90.0, 180.0], [0.2, 0.45])
    assert [path.name for path in draw([group], tmp_path / "one.svg", timed=True)][-1] == "one-time.svg"


def test_curves_show_accuracy_by_bytes_of_rounds_that_all_seeds_have(tmp_path: Path) -> None:
    one = Group("a", [
        finished(tmp_path, [0.1, None, 0.3, 0.5], 100), finished(tmp_path, [0.3, 0.4, 0.5], 300),
    ])  # fmt: skip
    other = Group("b", [finished(tmp_path, [0.25], 50)])
    figure = curves([one, other])
    assert lines(figure) == {"a": ([200.0, 600.0], [0.2, 0.4]), "b": ([50.0], [0.25])}
    (axes,) = figure.axes
    (band,) = axes.collections
    (path,) = band.get_paths()
    assert {tuple(point) for point in path.vertices.tolist()} == {(200, 0.1), (200, 0.3), (600, 0.3), (600, 0.5)}
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cut bytes sent so far", "validation accuracy")
    assert legend(figure) == ["a", "b"]


def test_an_upright_line_stands_at_what_the_images_weigh(tmp_path: Path) -> None:
    def at(label: str, *weights: int | None) -> Group:
        runs = [(finished(tmp_path, [0.1, 0.1, 0.1], 2500), weight) for weight in weights]
        return Group(label, [Run(run.folder, replace(run.summary, images_bytes=weight)) for run, weight in runs])

    # Seeds draw others of the same images; another data set has a line of its own; an old run tells nothing.
    groups = [at("a", 2500, 2520), at("b", 2530), at("c", 2800), at("d", None), at("e", 2400, None)]
    for figure in (curves(groups, "total"), roles(groups)):
        (axes,) = figure.axes
        upright = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert [line.get_xdata()[0] for line in upright] == [2520, 2800]
        assert len({line.get_linestyle() for line in upright}) == 2
        assert {"images: 2.52 kB", "images: 2.80 kB"} <= set(legend(figure))
        low, high = axes.get_xlim()
        assert low < 2520 < 2800 < high
    for figure in (curves(groups), factors(groups), curves([at("d", None)], "total")):
        assert not any(label.startswith("images") for label in legend(figure))


def test_what_the_images_weigh_far_from_what_was_sent_stretches_no_axis(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The picture is as wide as without it, and a mark at its edge says where it lies."""
    for number, values in enumerate(([0.1, 0.3], [0.1])):  # a single place too
        run = finished(tmp_path, values, 10_000)

        def weighing(weight: int | None, run: Run = run) -> list[Group]:
            return [Group("a", [Run(run.folder, replace(run.summary, images_bytes=weight))])]

        plain = curves(weighing(None), "total").axes[0].get_xlim()
        for weight, edge, mark in ((100, 0.0, "<"), (10**9, 1.0, ">")):
            figure = curves(weighing(weight), "total")
            (axes,) = figure.axes
            assert axes.get_xlim() == plain
            label = f"images: {size(weight)}"
            (at,) = [line for line in axes.lines if line.get_label() == label]
            assert (list(at.get_xdata()), at.get_marker(), at.get_transform()) == ([edge], mark, axes.transAxes)  # type: ignore[arg-type]
            assert label in legend(figure)
            save(figure, tmp_path / f"{number}-{weight}.png")
        near = curves(weighing(11_000), "total")
        assert "images: 11.00 kB" in legend(near)
        assert lines(near)["images: 11.00 kB"] == ([11_000, 11_000], [0, 1])
    assert roles(weighing(10**9)).axes[0].get_xlim() == roles(weighing(None)).axes[0].get_xlim()
    assert roles(weighing(100)).axes[0].get_xlim() == roles(weighing(None)).axes[0].get_xlim()
    assert not recwarn.list


def test_methods_differ_in_colour_and_marker_and_their_settings_in_the_line(tmp_path: Path) -> None:
    def at(kind: str, ratio: float) -> Group:
        reducer = f"{{kind: {kind}, ratio: {ratio}}}"
        return Group(f"{kind} {ratio}", [finished(tmp_path, [0.1], 10, reducer=reducer)])

    (axes,) = curves([at("adc", 0.1), at("topk", 0.1), at("adc", 0.2)]).axes
    looks = {line.get_label(): (line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert looks["adc 0.1"][:2] == looks["adc 0.2"][:2]
    assert looks["adc 0.1"][2] != looks["adc 0.2"][2]
    assert looks["adc 0.1"][0] != looks["topk 0.1"][0]
    assert looks["adc 0.1"][1] != looks["topk 0.1"][1]


def test_no_two_settings_of_a_method_look_the_same() -> None:
    for method in (0, 8):
        looks = [look(method, setting) for setting in range(90)]
        assert len(set(looks)) == 90
        assert len({(one.marker, one.fill, one.colour) for one in looks[:6]}) == 6, "without lines too"
    assert len({look(method, 0) for method in range(91)}) == 91


def test_factors_join_what_differs_in_numbers_of_its_compression_alone(tmp_path: Path) -> None:
    def at(label: str, sent: int, *accuracy: float, **settings: str) -> Group:
        return Group(label, [finished(tmp_path, [value], sent, **settings) for value in accuracy])  # type: ignore[arg-type]

    adc, bits = "{kind: adc, ratio: %s}", "{kind: uniform, bits: %d}"
    groups = [
        at("plain", 1000, 0.5, 0.7), at("adc 0.1", 100, 0.3, reducer=adc % 0.1),
        at("adc 0.5", 500, 0.5, reducer=adc % 0.5), at("8 bits", 250, 0.55, codec=bits % 8),
        at("both", 200, 0.4, reducer=adc % 0.5, codec=bits % 4),
    ]  # fmt: skip
    figure = factors(groups)
    assert lines(figure) == {
        "plain": ([1.0], [0.6]), "adc 0.1": ([10.0], [0.3]), "adc 0.5": ([2.0], [0.5]), "8 bits": ([4.0], [0.55]),
        "both": ([5.0], [0.4]),
    }  # fmt: skip
    assert legend(figure) == legend(curves(groups)) == [one.label for one in groups]
    (axes,) = figure.axes
    (joined,) = (line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-")  # type: ignore[arg-type]
    assert (list(joined.get_xdata()), list(joined.get_ydata())) == ([2.0, 10.0], [0.5, 0.3])  # type: ignore[arg-type]
    (level,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert set(level.get_ydata()) == {0.6}  # type: ignore[arg-type]
    (bars,) = axes.containers  # of the one group that has two seeds
    (segment,) = bars[2][0].get_segments()  # type: ignore[index]
    assert segment.ravel().tolist() == pytest.approx([1.0, 0.5, 1.0, 0.7])


@pytest.mark.parametrize(
    "change", [
        {}, {"compression.reducer.kind": "adc"}, {"compression.smashed.codec.kind": "float16"},
        {"compression.cut_gradient.codec.kind": "uniform"}, {"compression.front_weights.codec.kind": "uniform"},
        {"compression.targets.codec.kind": "bfloat16"}, {"compression.front_weights.delta": True},
        {"compression.front_weights.delta.kind": "uniform"},
    ],
)  # fmt: skip
def test_uncompressed_is_what_loses_nothing_at_all(change: dict[str, object]) -> None:
    settings = flat(Scenario.load("digits-uncompressed").model_dump(mode="json"))
    assert uncompressed({**dict(settings), **change}) == (not change)


def test_a_lossless_stage_and_what_is_not_sent_make_nothing_compressed() -> None:
    packed = dict(flat(Scenario.load("digits", ["compression={}"]).model_dump(mode="json")))
    assert uncompressed(packed)
    assert uncompressed({**packed, "compression.tail_smashed.codec.kind": "uniform"})
    private = {**packed, "federation.labels": "private", "compression.targets.codec.kind": "float16"}
    assert uncompressed(private)
    assert not uncompressed({**private, "compression.tail_gradient.codec.kind": "uniform"})
    whole = {**packed, "federation.mode": "fl"}
    assert uncompressed({**whole, "compression.reducer.kind": "adc", "compression.smashed.codec.kind": "uniform"})
    assert not uncompressed({**whole, "compression.front_weights.codec.kind": "uniform"})
    assert not uncompressed({"folder": "of a run without a scenario"})


def test_a_run_with_lossy_weights_has_no_line_of_uncompressed_ones(tmp_path: Path) -> None:
    for weights, levels in ((FLOAT, 1), ("{kind: uniform, bits: 8}", 0)):
        (axes,) = factors([Group("none", [finished(tmp_path, [0.5], 1000, of_weights=weights)])]).axes
        assert sum(line.get_linestyle() == ":" for line in axes.lines) == levels


def test_another_budget_is_another_method(tmp_path: Path) -> None:
    groups = [
        Group(str(n), [finished(tmp_path, [0.5], 10, reducer=f"{{kind: adc, ratio: 0.{ratio}}}", budget=budget)])
        for n, (ratio, budget) in enumerate([(1, 5), (1, 9), (2, 5)])
    ]  # fmt: skip
    assert [[one.label for one in members] for members in families(groups)] == [["0", "2"], ["1"]]


def test_an_autoencoder_of_another_width_is_one_method_with_weights_of_its_own(tmp_path: Path) -> None:
    ae = "{kind: ae, width: %d, weights: ae-%d.safetensors}"
    groups = [
        Group(str(width), [finished(tmp_path, [0.5], 10, reducer=ae % (width, width))]) for width in (24, 48)
    ]  # fmt: skip
    assert [len(members) for members in families(groups)] == [2]


def test_bars_are_stacked_by_role_and_end_at_all_bytes(tmp_path: Path) -> None:
    groups = [
        Group("a", [finished(tmp_path, [0.1], 100, wasted=6), finished(tmp_path, [0.1], 300)]),
        Group("b", [finished(tmp_path, [0.1], 50)]),
    ]
    figure = roles(groups)
    (axes,) = figure.axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}  # type: ignore[attr-defined]
    assert widths == {
        "smashed": [200, 50], "front_weights, up": [40, 40], "front_weights, down": [30, 30], "other": [7, 7],
        "wasted": [3, 0],
    }  # fmt: skip
    ends = [max(bars[n].get_x() + bars[n].get_width() for bars in axes.containers) for n in (0, 1)]  # type: ignore[index]
    assert ends == [280, 127]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert legend(figure) == list(widths)
    up, down = (bars[0] for bars in axes.containers if "front_weights" in str(bars.get_label()))  # type: ignore[index]
    assert to_hex(up.get_facecolor()) == to_hex(down.get_facecolor())
    assert (up.get_hatch() or "") != down.get_hatch()


def test_what_is_too_little_to_see_is_seen_and_no_bar_grows(tmp_path: Path) -> None:
    groups = [Group("large", [finished(tmp_path, [0.1], 10**6)]), Group("small", [finished(tmp_path, [0.1], 1000)])]
    (axes,) = roles(groups).axes
    for n, total in enumerate((10**6 + 77, 1077)):
        widths = [bars[n].get_width() for bars in axes.containers]  # type: ignore[index]
        assert sum(widths) == pytest.approx(total)
        assert min(widths) >= min(0.0099 * (10**6 + 77), total / 12)


def test_curves_by_total_stand_at_the_bytes_of_both_planes_and_no_waste_moves_them(tmp_path: Path) -> None:
    one = Group("a", [
        finished(tmp_path, [0.1, 0.3], 100, weights=50, wasted=9999), finished(tmp_path, [0.3, 0.5], 300, weights=150),
    ])  # fmt: skip
    whole = Group("fl", [finished(tmp_path, [0.25, 0.5], 0, weights=70)])  # without a cut, and so without cut bytes
    figure = curves([one, whole], "total")
    assert lines(figure) == {"a": ([300.0, 600.0], [0.2, 0.4]), "fl": ([70.0, 140.0], [0.25, 0.5])}
    assert figure.axes[0].get_xlabel() == "total bytes sent so far"
    level, height = lines(curves([one, whole]))["fl"]
    assert (level, height) == ([0, 1], [0.5, 0.5])


def test_factors_by_total_divide_the_bytes_of_both_planes_by_those_and_the_waste(tmp_path: Path) -> None:
    groups = [
        Group("a", [finished(tmp_path, [0.5], 100, weights=500, reducer="{kind: adc, ratio: 0.1}")]),
        Group("b", [finished(tmp_path, [0.6], 100, weights=500, wasted=600, reducer="{kind: adc, ratio: 0.2}")]),
        Group("c", [finished(tmp_path, [0.7], 1000, weights=1400)]),
    ]
    figure = factors(groups, "total")
    assert lines(figure) == {"a": ([4.0], [0.5]), "b": ([2.0], [0.6]), "c": ([1.0], [0.7])}
    assert figure.axes[0].get_xlabel() == "total factor: uncompressed bytes / sent bytes"
    assert factors(groups).axes[0].get_xlabel() == "cut factor: uncompressed bytes / sent bytes"


@pytest.mark.parametrize("label", ["short {}", "a label that is too long for two a row {}"])
def test_a_long_legend_takes_no_room_from_the_axes(tmp_path: Path, label: str) -> None:
    groups = [Group(label.format(n), [finished(tmp_path, [0.1, 0.2], 100 + n)]) for n in range(12)]
    heights = []
    with rc_context(STYLE):
        for some in (groups[:2], groups):
            figure = curves(some)
            figure.draw_without_rendering()
            (axes,) = figure.axes
            heights.append(axes.get_position().height * figure.get_figheight())
    assert heights[1] == pytest.approx(heights[0], rel=0.2)  # fonts differ


MANY = [
    {"reducer": f"{{kind: {kind}, ratio: {ratio}}}", "codec": f"{{kind: uniform, bits: {bits}}}", "budget": budget}
    for kind, ratio, bits, budget in product(("adc", "topk"), (0.1, 0.25), (2, 4), (120_000_000, 240_000_000))
]


@pytest.mark.parametrize("name", few(["digits", "a-name-that-takes-far-more-room-than-there-is", "W" * 50], quick=1))
def test_runs_that_differ_in_many_keys_have_short_labels_and_all_stays_in_the_picture(
    tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    groups = group([finished(tmp_path, [0.2, 0.3], 10 ** (n % 7 + 1), name=name, **one) for n, one in enumerate(MANY)])  # type: ignore[arg-type]
    labels = short_labels(groups)
    assert len(set(labels)) == len(groups) == 16
    assert max(map(len, labels)) <= 36
    with rc_context(STYLE):
        for figure in (curves(groups), curves(groups, "total"), factors(groups), roles(groups)):
            inside(figure)
            (axes,) = figure.axes
            if figure.axes[0].get_yticklabels()[0].get_text() == labels[0]:
                assert [text.get_text() for text in axes.get_yticklabels()] == labels
            else:
                assert legend(figure) == labels
    assert not recwarn.list


def inside(figure: Figure) -> None:
    """Nothing of a figure reaches out of it, and no two ticks of an axis run into each other."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    picture = figure.bbox
    low, high = sorted(axes.get_ylim())
    upright = [text for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]  # others are not drawn
    texts = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *upright]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for box in [*boxes, figure.legends[0].get_window_extent()]:
        assert picture.x0 - 1 <= box.x0 <= box.x1 <= picture.x1 + 1
        assert picture.y0 - 1 <= box.y0 <= box.y1 <= picture.y1 + 1
    ticks = sorted(text.get_window_extent().x0 for text in axes.get_xticklabels())
    ends = sorted(text.get_window_extent().x1 for text in axes.get_xticklabels())
    assert all(end < start for end, start in zip(ends, ticks[1:], strict=False))


@pytest.mark.parametrize("sent", [
    (1, 1), (100, 101), (1000, 1300), (970_000, 1_030_000), (10**6, 3 * 10**6), (10**6, 10**7), (10**5, 10**8),
    (1, 10**15),
])  # fmt: skip
def test_ticks_do_not_run_into_each_other(
    tmp_path: Path, sent: tuple[int, int], recwarn: pytest.WarningsRecorder
) -> None:
    groups = [Group(str(n), [finished(tmp_path, [0.2], each)]) for n, each in enumerate(sent)]
    with rc_context(STYLE):
        for figure in (curves(groups), factors(groups), roles(groups)):
            inside(figure)
            (axes,) = figure.axes
            texts = [text.get_text() for text in axes.get_xticklabels()]
            assert len(texts) == len(set(texts)) >= 2
    assert not recwarn.list


def test_runs_without_a_cut_or_an_evaluation_are_drawn_too(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    groups = [Group("fl", [finished(tmp_path, [0.5], 0, weights=9)]), Group("b", [finished(tmp_path, [None], 10)]),
              Group("c", [finished(tmp_path, [None], 0)])]  # fmt: skip
    draw(groups, tmp_path / "figure.png")
    draw(groups[:1], tmp_path / "alone.png")
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_four_files_stand_beside_each_other_and_come_out_the_same_again(tmp_path: Path, suffix: str) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    groups = [Group("a", [finished(runs, [0.1, 0.2], 100)])]
    written = draw(groups, tmp_path / "figures" / f"study{suffix}")
    assert [path.name for path in written] == [
        f"study-{name}{suffix}" for name in ("curves", "total", "factors", "roles")
    ]
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in draw(groups, tmp_path / "figures" / f"study{suffix}")] == first


def test_a_column_of_a_paper_holds_each_picture(tmp_path: Path) -> None:
    groups = [Group(f"group {n}", [finished(tmp_path, [0.1, 0.2], 100 + n)]) for n in range(14)]
    for picture in (curves, factors, roles):
        assert picture(groups).get_figwidth() == 3.3


def test_other_kinds_of_pictures_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^--out \S+figure: pictures are named \*\.png, \*\.pdf, \*\.svg$"):
        draw([], tmp_path / "figure")
    (tmp_path / "file").touch()
    groups = [Group("a", [finished(tmp_path, [0.1], 100)])]
    with pytest.raises(RunError, match="cannot be written"):
        draw(groups, tmp_path / "file" / "x.png")


def few(label: str) -> bool:
    return len(label) <= 30


def called(*named: tuple[str, dict[str, Any]]) -> list[str]:
    return short(distinct(list(named)), list(named), few)


def test_labels_that_fit_stay() -> None:
    assert called(("adc", {"a.ratio": 0.1}), ("adc", {"a.ratio": 0.2}), ("none", {})) == [
        "adc: ratio=0.1", "adc: ratio=0.2", "none",
    ]  # fmt: skip


def test_of_many_settings_those_are_told_that_tell_them_apart() -> None:
    many = {"compression.smashed.codec.bits": 3, "training.batch_size": 16, "model.cut": 2}
    ours = {"compression.reducer.kind": "adc", **many}
    other = {key: value + 1 for key, value in many.items()}
    assert called(("digits", ours), ("digits", {"compression.reducer.kind": "topk", **other})) == [
        "digits: adc", "digits: topk",
    ]  # fmt: skip
    by_two = [("digits", {"reducer.kind": kind, "ratio": n, **{f"setting{n}": n for n in range(9)}, "x": n})
              for kind in ("adc", "topk") for n in (1, 2)]  # fmt: skip
    assert called(*by_two) == ["digits: adc, ratio=1", "digits: adc, ratio=2", "digits: topk, ratio=1",
                               "digits: topk, ratio=2"]  # fmt: skip


def test_what_cannot_be_told_in_few_letters_is_numbered() -> None:
    long = [("digits", {"path": f"/somewhere/far/away/and/further/{n}"}) for n in range(12)]
    assert called(*long) == [f"digits {n}" for n in range(1, 13)]
    names = [(f"a-study-with-a-name-{n}-that-does-not-fit", {}) for n in range(3)]
    found = called(*names)
    assert len(set(found)) == 3
    assert all(label.startswith("a-study-w") and "…" in label and few(label) for label in found)


KEYS = st.sampled_from(["compression.reducer.kind", "compression.reducer.ratio", "seed", "model.name", "data.path"])
VALUES = st.one_of(st.text("xy=, ", max_size=40), st.integers(0, 9), st.booleans(), st.none())
NAMED = st.lists(
    st.tuples(st.text("ab…- 1", max_size=40), st.dictionaries(KEYS, VALUES, max_size=3)), min_size=1, max_size=6
)


@given(NAMED)
def test_labels_are_short_and_no_two_alike(named: list[tuple[str, dict[str, Any]]]) -> None:
    found = called(*named)
    assert all(map(few, found))
    assert len(set(found)) == len(named)
