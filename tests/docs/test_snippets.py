"""What README.md and docs/ show is there: their commands and Python blocks run, in a folder of their own and offline.

A block that takes a network, other machines or too long stands below `<!-- not run: why -->`; its commands are then
parsed, and its Python compiled. A block whose first line is `# name.yaml` is that file. Of a `console` block the output
is compared, `...` standing for anything. Runs are shortened, the run of a date that is shown stands for the newest, and
a command that several pages show runs once.
"""

import contextlib
import io
import json
import re
import shlex
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import click
import pytest
import typer.main
import yaml
from places import ROOT

from splitfed import Scenario, SplitfedError
from splitfed.cli.main import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SHELL = ("", "bash", "console")
SHORT = [
    "--set", "federation.rounds=1", "--set", "federation.local_epochs=1", "--set", "engine.threads=1",
    "--set", "data.limit=600", "--set", "data.test_limit=100",
]  # fmt: skip
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<why>[^\n]+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S
)
FILE = re.compile(r"# (\S+\.\w+)\n")
STAMP = re.compile(r"(runs/(.+)-)\d{8}T\d{6}Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language and its text, and why it is not run."""

    place: str
    language: str
    text: str
    why: str | None

    @property
    def name(self) -> str | None:
        """The file that it is."""
        found = FILE.match(self.text)
        return found[1] if found and self.language else None

    @property
    def commands(self) -> list[tuple[list[str], str]]:
        """The command lines of splitfed in it, without its name, each with what is shown below it."""
        if self.language not in SHELL:
            return []
        found: list[tuple[list[str], str]] = []
        for line in self.text.replace("\\\n", " ").splitlines(keepends=True):
            command = line.removeprefix("$ ")
            if command.startswith("splitfed "):
                found.append((shlex.split(command, comments=True)[1:], ""))
            elif found:
                found[-1] = (found[-1][0], found[-1][1] + line)
        return found


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            f"{page.name}:{text.count(chr(10), 0, found.start('language')) + 1}", found["language"],
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.M), found["why"],
        )
        for found in FENCE.finditer(text)
    ]  # fmt: skip


def parsed(arguments: list[str]) -> click.Context:
    """Parse a command line as the program does, without running it."""
    return COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])


def check(arguments: list[str]) -> None:
    """Refuse a command line with options that there are not, or a scenario that does not ship or cannot be read."""
    values = parsed(arguments).params
    scenario = values.get("scenario")
    if scenario and not scenario.endswith(".yaml"):
        engine = [f"engine.kind={kind}"] if (kind := values.get("engine")) else []
        Scenario.load(scenario, [*engine, *(values.get("set_") or [])])


def ready(token: str) -> list[str]:
    """Return the words that a word of a command line stands for in this folder: files, or the newest run."""
    if dated := STAMP.fullmatch(token):
        if not (runs := sorted(glob(f"{dated[1]}[0-9]*"))):
            call(["simulate", dated[2], *SHORT])
            runs = sorted(glob(f"{dated[1]}[0-9]*"))
        return runs[-1:]
    return sorted(glob(token)) or [token]


def call(arguments: list[str]) -> str:
    """Run a command line in this process and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        app(arguments, standalone_mode=False, prog_name="splitfed")
    return out.getvalue()


def run(arguments: list[str], expected: str | None) -> None:
    arguments = [word for token in arguments for word in ready(token)]
    if arguments[0] == "simulate" and "--dry-run" not in arguments:
        arguments += SHORT
    try:
        said = call(arguments)
    except SplitfedError as error:
        if expected is None:
            raise
        said = f"{error}\n"
    if expected is not None:
        said, expected = (re.sub(r" +$", "", text, flags=re.M).strip() for text in (said, expected))
        pattern = ".*".join(re.escape(part) for part in expected.split("..."))
        assert re.fullmatch(pattern, said, re.S), f"it says\n{said}\nand not\n{expected}"


def execute(block: Block, names: dict[str, object], done: set[str]) -> None:
    """Do with a block what its language asks for; commands that were `done` are not run again."""
    if block.name:
        Path(block.name).write_text(block.text)
    if block.language == "python":
        code = compile(block.text, block.place, "exec")
        if not block.why and not block.name:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
    elif block.language == "yaml" and not block.name:
        found = yaml.safe_load(block.text)
        preset = found.pop("preset", None)
        Scenario.load("digits", [f"{key}={json.dumps(value)}" for key, value in found.items()], preset=preset)
    for arguments, output in block.commands:
        if block.why:
            check(arguments)
        elif block.language == "console":
            run(arguments, output)
        elif (line := shlex.join(arguments)) not in done:
            run(arguments, None)
            done.add(line)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all pages' runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def folder(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page's folder, in which its commands run: with what a reader finds in the repository, and the runs."""
    (tmp_path / "runs").symlink_to(runs)
    for name in ("docs", "scenarios", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done() -> set[str]:
    """The command lines that were run, whose output is not compared."""
    return set()


# Pages whose commands train much: the quick tests have those of README.md and of the first run.
TRAINING = ("compression.md", "inference.md", "library.md", "links.md", "scenarios.md", "study.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.name, marks=pytest.mark.slow if p.name in TRAINING else ()) for p in PAGES],
)
def test_what_a_page_shows_runs(page: Path, folder: Path, done: set[str]) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        try:
            execute(block, names, done)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{block.place}: {type(error).__name__}: {error}")


def test_no_fence_is_overlooked() -> None:
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(blocks(page)), page.name
        assert text.count("<!-- not run:") == sum(block.why is not None for block in blocks(page)), page.name


def test_a_wrong_command_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("simulat digits", "list reducer", "simulate digit --dry-run", "compare runs --buy bytes"):
        with pytest.raises((KeyError, SplitfedError, click.UsageError)):
            execute(Block("", "", f"splitfed {line}\n", None), {}, set())
    for line in ("serve digits --tsl tls/", "simulate digit", "simulate digits --set federation.round=1", "sweep"):
        with pytest.raises((KeyError, SplitfedError, click.UsageError)):
            execute(Block("", "", f"splitfed {line}\n", "waits"), {}, set())
    with pytest.raises(AssertionError, match="it says"):
        execute(Block("", "console", "$ splitfed list lossless\nzstd  ...  level=2 ...\n", None), {}, set())
    execute(Block("", "console", "$ splitfed list lossless\nzstd  ...\nnone  No lossless stage.\n", None), {}, set())


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_commands_within_the_text_are_there(page: Path) -> None:
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text())):
        words = " ".join(span.split()).split(" ")
        if words[0] != "splitfed" or len(words) == 1 or words[1].startswith("-") or words[1].isupper():
            continue
        assert words[1] in COMMANDS, f"{page.name}: {span}"
        known = {
            option for parameter in COMMANDS[words[1]].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in words[2:] if word.startswith("--")} <= known | {"--help"}, f"{page.name}: {span}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [p for p in TEXTS if p.name != "CHANGELOG.md"], ids=lambda p: p.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    rooms = "benchmarks|tests|sweeps|scenarios|examples|compression|clients|server|splitfed"
    for name in re.findall(rf"(?<![\w./])((?:{rooms})/[\w./-]+\.(?:py|yaml|ipynb))", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.encode()) <= 8_000
    assert all(f"](docs/{page.name})" in text for page in PAGES[1:])
    assert len(list((ROOT / "docs").iterdir())) <= 16


def test_every_command_has_its_place_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert all(f"splitfed {name}" in text for name in COMMANDS)
