"""What people read is never better than what is true, and names are shown as they are."""

import io
import math
import re
from fractions import Fraction
from html import unescape

import matplotlib
import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from splitfed.reports import units
from splitfed.reports.plain import code, code_block, legend_label, markdown
from splitfed.reports.study.plots import STYLE
from splitfed.reports.tables import new_table, show

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15, "EB": 10**18}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (1004, "1.00 kB"), (1005, "1.01 kB"),
        (999_994, "999.99 kB"), (999_995, "1.00 MB"), (1_490_000, "1.49 MB"), (126_000_000, "126.00 MB"),
        (999_999_999, "1.00 GB"), (10**15, "1.00 PB"), (5 * 10**21, "5000.00 EB"),
    ],
)  # fmt: skip
def test_size(count: int, text: str) -> None:
    assert units.size(count) == text


@given(st.integers(1, 10**20))
def test_size_is_within_half_of_its_last_digit(count: int) -> None:
    figure, unit = units.size(count).split()
    step = Fraction(UNITS[unit], 1 if unit == "B" else 100)
    assert abs(Fraction(figure) * UNITS[unit] - count) <= step / 2
    assert Fraction(figure) > 0
    assert len(figure) <= 6 or unit == "EB", "six characters are what the columns of a round have room for"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (12.34, "12.3 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"), (65, "1 min 05 s"),
        (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (7380, "2 h 03 min"), (86399, "1 d 00 h"),
        (100_800, "1 d 04 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("raw", "sent", "text"),
    [
        (0, 0, "-"), (7, 0, "-"), (1, 1, "1.00x"), (999, 1000, "0.99x"), (99_999, 10_000, "9.99x"), (10, 1, "10.0x"),
        (1239, 100, "12.3x"), (12_399, 10, "1239.9x"), (0, 5, "0.00x"),
    ],
)  # fmt: skip
def test_factor(raw: int, sent: int, text: str) -> None:
    assert units.factor(raw, sent) == text


@given(st.integers(0, 10**18), st.integers(1, 10**18))
def test_factor_is_never_better_than_it_is(raw: int, sent: int) -> None:
    shown = Fraction(units.factor(raw, sent).removesuffix("x"))
    assert shown <= Fraction(raw, sent) < shown + Fraction(1, 10)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.29, "29.0 %"), (0.57, "57.0 %"), (0.8619, "86.1 %"),
        (0.99999, "99.9 %"), (1.0321, "103.2 %"), (1e-9, "0.0 %"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_percent(share: float | None, text: str) -> None:
    assert units.percent(share) == text


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_percent_is_never_better_than_the_share_counted(pair: tuple[int, int]) -> None:
    right, of = pair
    shown = Fraction(units.percent(right / of).removesuffix(" %"))
    assert shown <= Fraction(100 * right, of) < shown + Fraction(1, 10)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.0000"), (2.30259, "2.3026"), (0.0004, "4.0e-04"), (12345.6, "1.2e+04"), (math.nan, "nan"),
     (math.inf, "inf"), (999.99999, "1000.0000")],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert units.number(value) == text


# Names, with signs of rich, matplotlib and Markdown in them

NAMES = [
    "[bold]", "[/]", "[/b]", "km/h [/]", "[red]x[/red]", ":smile:", "$x$", "$_$", "$5^$", "a_b_c", "_x_", "\\", "a\\_b",
    "*x*", "`x`", "``", "<b>", "&lt;", "a|b", "![x](y)", "~~x~~", "x`|`y", "\\|",
]  # fmt: skip
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
LINES = st.text(st.sampled_from("ab \\`*_[]()<>~$&|!:/"), min_size=1).map(lambda text: f"x{text}x").map(
    lambda text: " ".join(text.split())
)  # fmt: skip


def seen(html: str, tag: str) -> str:
    """Return what stands in the first element of a page."""
    (found, *_) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return unescape(re.sub(r"</?(code|p)[^>]*>", "", found))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_names_as_they_are(name: str) -> None:
    table = new_table(name, [f"{name}?"])
    table.add_row(f"{name}!", name)
    text = io.StringIO()
    show(table, [name], rich.console.Console(file=text, force_jupyter=False))
    head, _, row, note = text.getvalue().splitlines()
    assert head.split("  ")[0].strip() == name
    assert row.strip().startswith(f"{name}!")
    assert row.strip().endswith(name)
    assert note == name


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_shows_names_as_they_are(name: str) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure((2, 2))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], label=legend_label(name))
        axes.set_xticks([0], [name])
        legend = figure.legend(*axes.get_legend_handles_labels())
        file = io.StringIO()
        figure.savefig(file, format="svg")
    assert [text.get_text().strip() for text in legend.get_texts()] == [name]
    assert len(re.findall(rf">\s*{re.escape(name)}\s*<", unescape(file.getvalue()))) == 2


@given(LINES)
def test_markdown_shows_the_text(text: str) -> None:
    assert seen(READER.render(f"# {markdown(text)}: y"), "h1") == f"{text}: y"
    assert seen(READER.render(code(text)), "p") == text
    assert seen(READER.render(code_block(f"a\n{text}\nb\n", "yaml")), "pre") == f"a\n{text}\nb\n"


@given(LINES)
def test_markdown_in_a_cell_of_a_table_shows_the_text(text: str) -> None:
    cell = markdown(text).replace("|", r"\|")
    assert seen(READER.render(f"| a |\n| --- |\n| {cell} |\n"), "td") == text
