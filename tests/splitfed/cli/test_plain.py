"""Names are shown as they are, whatever they mean to rich, matplotlib and Markdown."""

import io
import re
from html import unescape

import matplotlib
import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from splitfed.reports.plain import code, code_block, legend_label, markdown
from splitfed.reports.study.looks import STYLE
from splitfed.reports.tables import new_table, show

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
