"""Pictures: what is drawn, asked of matplotlib's own objects, and the files that they become."""

from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from splitfed.errors import RunError
from splitfed.reports.study.groups import Group, Run
from splitfed.reports.study.methods import families
from splitfed.reports.study.plots import STYLE, curves, draw, factors, roles
from splitfed.run.ledger import COLUMNS
from splitfed.run.metrics import HEADER, Metrics
from splitfed.run.summary import Summary

SCENARIO = """
data: {{path: digits}}
compression: {{reducer: {reducer}, smashed: {{codec: {codec}}}}}
budget: {{kind: cut_bytes, bytes: {budget}}}
"""
FLOAT = "{kind: float32}"


def finished(
    root: Path, accuracy: list[float | None], sent: int, *, reducer: str = "{kind: none}", codec: str = FLOAT,
    budget: int = 1, name: str = "one", wasted: int = 0, weights: int = 0,
) -> Run:  # fmt: skip
    """A run that sent so many cut bytes in each round; uncompressed it would have been 1000, with weights 2400."""
    folder = root / f"{name}-{len(list(root.iterdir()))}"
    folder.mkdir()
    (folder / "scenario.yaml").write_text(SCENARIO.format(reducer=reducer, codec=codec, budget=budget))
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


def test_factors_join_what_differs_in_numbers_of_its_compression_alone(tmp_path: Path) -> None:
    def at(sent: int, *accuracy: float, **settings: str) -> Group:
        return Group(f"{sent}", [finished(tmp_path, [value], sent, **settings) for value in accuracy])  # type: ignore[arg-type]

    adc, bits = "{kind: adc, ratio: %s}", "{kind: uniform, bits: %d}"
    figure = factors([
        at(1000, 0.5, 0.7), at(100, 0.3, reducer=adc % 0.1), at(500, 0.5, reducer=adc % 0.5),
        at(250, 0.55, codec=bits % 8), at(200, 0.4, reducer=adc % 0.5, codec=bits % 4),
    ])  # fmt: skip
    assert lines(figure) == {
        "uncompressed": ([1.0], [0.6]), "adc": ([2.0, 10.0], [0.5, 0.3]), "uniform": ([4.0], [0.55]),
        "adc + uniform": ([5.0], [0.4]),
    }  # fmt: skip
    (axes,) = figure.axes
    (level,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert set(level.get_ydata()) == {0.6}
    (bars,) = axes.containers  # of the one group that has two seeds
    (segment,) = bars[2][0].get_segments()  # type: ignore[index]
    assert segment.ravel().tolist() == pytest.approx([1.0, 0.5, 1.0, 0.7])


def test_another_budget_is_another_family_and_the_name_says_so(tmp_path: Path) -> None:
    groups = [
        Group(str(n), [finished(tmp_path, [0.5], 10, reducer=f"{{kind: adc, ratio: 0.{ratio}}}", budget=budget)])
        for n, (ratio, budget) in enumerate([(1, 5), (1, 9), (2, 5)])
    ]  # fmt: skip
    found = {name: [one.label for one in members] for name, members in families(groups).items()}
    assert found == {"adc: bytes=5": ["0", "2"], "adc: bytes=9": ["1"]}


def test_an_autoencoder_of_another_width_is_one_method_with_weights_of_its_own(tmp_path: Path) -> None:
    ae = "{kind: ae, width: %d, weights: ae-%d.safetensors}"
    groups = [
        Group(str(width), [finished(tmp_path, [0.5], 10, reducer=ae % (width, width))]) for width in (24, 48)
    ]  # fmt: skip
    assert {name: len(members) for name, members in families(groups).items()} == {"ae": 2}


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
    assert lines(figure) == {"adc": ([2.0, 4.0], [0.6, 0.5]), "uncompressed": ([1.0], [0.7])}
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


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_three_files_stand_beside_each_other_and_come_out_the_same_again(tmp_path: Path, suffix: str) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    groups = [Group("a", [finished(runs, [0.1, 0.2], 100)])]
    written = draw(groups, tmp_path / "figures" / f"study{suffix}")
    assert [path.name for path in written] == [f"study-{name}{suffix}" for name in ("curves", "factors", "roles")]
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
