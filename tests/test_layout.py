"""How the house hangs together: its rooms, what they import of each other, and what importing them costs."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import ORDER, House
from places import ROOT

import splitfed
from splitfed.cli.listing.kinds import SORTS

HEAVY = (
    "torch", "torchvision", "timm", "flwr", "flwr_datasets", "ray", "pydantic", "numpy", "datasets", "sklearn",
    "tensorboard",
)  # fmt: skip
CODE = ("splitfed", "clients", "server", "compression")
# Room for what is coming is kept: the package itself has a room for each subject, and few modules.
MOST_ENTRIES, MOST_ROOMS, MOST_MODULES, MOST_FILES_OF_PROSE = 12, 12, 9, 16
MOST_LINES, MOST_TEST_LINES, FEWEST_LINES = 400, 512, 40
# Files below 40 lines, each with its reason.
SHORT = {
    "splitfed/__main__.py": "is a name of Python's",
    "splitfed/version.py": "whoever tells the version imports nothing else",
    "splitfed/federation/memory.py": "settings alone",
    "compression/reducers/tokens/ragged.py": "both cuts need it, and the reducer",
    "splitfed/scenario/rules/base.py": "what all rules share, apart from the list of them",
    "server/memory/session.py": "a kind of session, apart from those that train",
    "compression/reducers/registry.py": "the union, apart from the contract",
    "compression/reducers/none.py": "one method a file",
    "compression/codecs/choices.py": "what settings and implementations both know, so that neither imports the other",
    "compression/codecs/registry.py": "the union, apart from the contract",
    "splitfed/engines/allocator.py": "is set before torch is imported",
    "splitfed/engines/deployment/proof.py": "both ends of a secret",
    "server/deployment/keys.py": "what Flower's own modules say, apart from the door that asks",
    "splitfed/reports/live/log.py": "the one place that joins console and curves to a run folder",
    "splitfed/reports/sweep/point.py": "is started by its name, in a process of its own",
    "splitfed/data/stratify.py": "below all that divides images",
    "splitfed/model/adapters/registry.py": "the union, apart from the contract",
    "splitfed/model/_torchvision.py": "is imported for its effect, before timm",
    "splitfed/data/partitions/union.py": "the union of all kinds",
}
HOUSE = House(ROOT)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compression_is_a_folder_without_init() -> None:
    """From Python 3.14 on `compression` is a package of the standard library, which gzip and bz2 import: one of that
    name at the root would stand in front of it whenever the root comes first on `sys.path`."""
    assert not (ROOT / "compression" / "__init__.py").exists()
    assert (ROOT / "clients" / "__init__.py").exists()
    assert (ROOT / "server" / "__init__.py").exists()


def test_gzip_and_bz2_import_with_the_root_first() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import bz2, gzip
assert gzip.decompress(gzip.compress(b"x")) == bz2.decompress(bz2.compress(b"x")) == b"x"
from importlib.util import find_spec
print(find_spec("splitfed.compression.reducers.adc").origin)
"""
    assert Path(run(code).strip()).resolve() == ROOT / "compression" / "reducers" / "adc.py"


def test_imports_run_downhill() -> None:
    assert not HOUSE.uphill()


def test_the_two_sides_do_not_know_each_other() -> None:
    """Nor does what both share know them, but for the composition roots, inside functions."""
    assert not HOUSE.across()


def test_the_roots_folders_are_imported_as_parts_of_the_package() -> None:
    """In a checkout `import server` would work, in a wheel not."""
    assert not HOUSE.by_folder()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not HOUSE.circles()


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {path.name for path in (ROOT / "splitfed").iterdir() if path.is_dir() and path.name != "__pycache__"}
    no_rooms = {"base", "sides", "service", "testing", "simulation"}
    assert rooms - {"scenarios"} == set(ORDER) - no_rooms | {"clients", "server"}


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("splitfed/wire/frame.py", "from splitfed.scenario import Scenario", None),
        ("splitfed/scenario/yaml.py", "from splitfed.wire.frame import pack", "uphill"),
        ("splitfed/scenario/yaml.py", "def f():\n    import splitfed.wire.frame", "uphill"),
        ("splitfed/scenario/yaml.py", "from ..wire import frame", "uphill"),
        ("splitfed/model/deep/parts.py", "from splitfed.run.ledger import Row", "uphill"),
        ("compression/reducers/adc.py", "from splitfed.model.parts import Front", "uphill"),
        ("splitfed/split/cut.py", "from splitfed.reports.tables import show", "uphill"),
        ("clients/app.py", "from splitfed.server import app", "across"),
        ("clients/app.py", "from server import app", "across"),
        ("clients/deployment/tasks.py", "import server", "across"),
        ("server/back/server.py", "import splitfed.clients.app", "across"),
        ("splitfed/run/ledger.py", "def f():\n    from splitfed.server.app import app", "across"),
        ("splitfed/simulation.py", "from splitfed.server.app import app", "across"),
        ("splitfed/simulation.py", "def f():\n    from splitfed.server.app import app", None),
        ("splitfed/inference/service/a.py", "from splitfed.server.app import app", None),
        ("splitfed/inference/remote/a.py", "from splitfed.clients.app import app", None),
        ("splitfed/inference/remote/a.py", "from splitfed.server.app import app", "across"),
        ("splitfed/inference/a.py", "from splitfed.clients.app import app", "across"),
        ("clients/app.py", "from splitfed.inference.a import x", None),
        ("clients/app.py", "from splitfed.inference.remote.a import x", "uphill"),
        ("splitfed/run/a.py", "from splitfed.run.b import x", "circles"),
        ("splitfed/run/a.py", "def f():\n    from splitfed.run.b import x", "circles"),
        ("splitfed/run/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from splitfed.run.b import x",
         "circles"),
    ],
)  # fmt: skip
def test_a_broken_import_is_seen(file: str, line: str, fault: str | None, tmp_path: Path) -> None:
    """So the tests above can fail, whatever the folder and the way to import."""
    others = {
        "splitfed/run/b.py": "from splitfed.run.a import y", "splitfed/run/a.py": "", "splitfed/wire/frame.py": "",
        "splitfed/scenario/__init__.py": "", "splitfed/reports/tables.py": "", "splitfed/run/ledger.py": "",
        "splitfed/model/parts.py": "", "clients/app.py": "", "server/app.py": "", "splitfed/inference/a.py": "",
    }  # fmt: skip
    for name, text in {**others, file: line}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    house = House(tmp_path)
    found = {"uphill": house.uphill(), "across": house.across(), "circles": house.circles()}
    assert {kind for kind, faults in found.items() if faults} == ({fault} if fault else set())


def entries(folder: Path) -> list[str]:
    """Return what stands in a folder, without what every package has and without links."""
    known = {"__init__.py", "py.typed", "__pycache__"}
    return [path.name for path in folder.iterdir() if path.name not in known and not path.is_symlink()]


def folders(*roots: str) -> list[Path]:
    below = [path for root in roots for path in (ROOT / root).rglob("*") if path.is_dir()]
    return [*(ROOT / root for root in roots), *(path for path in below if path.name != "__pycache__")]


def test_no_folder_is_crowded() -> None:
    for folder in folders(*CODE, "tests"):
        if folder not in (ROOT / "splitfed", ROOT / "splitfed" / "scenarios"):  # these are prose, below
            assert len(entries(folder)) <= MOST_ENTRIES, folder
    names = entries(ROOT / "splitfed")
    modules = [name for name in names if name.endswith(".py")]
    assert (len(names) - len(modules) <= MOST_ROOMS, len(modules) <= MOST_MODULES) == (True, True), names
    for folder in ("docs", "scenarios", "sweeps", "benchmarks"):
        assert len(entries(ROOT / folder)) <= MOST_FILES_OF_PROSE, folder


def test_a_package_is_a_docstring() -> None:
    """`splitfed.scenario` alone hands a name on."""
    for path in [path for folder in folders(*CODE) for path in folder.glob("__init__.py")]:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        if path not in (ROOT / "splitfed/__init__.py", ROOT / "splitfed/scenario/__init__.py"):
            assert len(tree.body) == 1, path


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("import splitfed; splitfed.__version__; dir(splitfed)", id="import"),
        pytest.param(
            """
from splitfed.cli.main import main
sys.argv = ["splitfed", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
""",
            id="help",
        ),
    ],
)
def test_starting_loads_nothing_heavy(start: str) -> None:
    assert not set(HEAVY) & loaded_by(start)


LISTED = [what for what in SORTS if what != "models"]


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("import splitfed.scenario", id="import"),
        pytest.param("from splitfed import Scenario; Scenario.load('digits').to_yaml()", id="load"),
        pytest.param(
            """
from splitfed import Scenario
for change in ("compression.reducer=none", "compression.smashed.codec=fedlite", "compression.smashed.lossless=none",
               "data.partition=dirichlet", "model.adapter=norms", "federation.strategy=FedMedian",
               "federation.availability=drawn", "training.client.schedule=cosine"):
    Scenario.parse(Scenario.load("digits").to_yaml(), overrides=[change])
""",
            id="parse",
        ),
        pytest.param(
            f"""
from splitfed.cli.main import app
for what in {LISTED}:
    app(["list", what, "--long"], standalone_mode=False)
""",
            id="list",
        ),
        pytest.param("from splitfed.cli.main import app; app(['schema'], standalone_mode=False)", id="schema"),
        pytest.param("import splitfed.split.mistakes, splitfed.reports.sweep.plan", id="validate"),
    ],
)
def test_reading_a_scenario_loads_neither_torch_nor_flower(start: str) -> None:
    """Settings stand in modules of their own, and what they build is imported when it is built."""
    assert not set(HEAVY) - {"pydantic"} & loaded_by(start)


def loaded_by(start: str) -> set[str]:
    loaded = run(f"import sys\n{start}\nprint('loaded:', *sorted(m for m in sys.modules if '.' not in m))")
    names = set(loaded.rpartition("loaded:")[2].split())
    assert "splitfed" in names
    return names


def test_every_exported_name_is_there() -> None:
    # What can be loaded is told nowhere in public: a name that is loaded and not exported would go unseen.
    assert set(splitfed.__all__) == {*splitfed._WHERE, "__version__"}
    for name in splitfed.__all__:
        assert getattr(splitfed, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        _ = splitfed.simulat  # type: ignore[attr-defined]


def test_no_exported_name_is_a_module_too() -> None:
    """Importing a module `splitfed.x` sets the attribute `x` of the package, and what was exported under it is gone."""
    modules = {path.stem for path in (ROOT / "splitfed").iterdir()}
    assert not set(splitfed.__all__) & modules


def test_modules_are_short_and_say_what_they_are() -> None:
    for name, path in HOUSE.files.items():
        text, where = path.read_text(), str(path.relative_to(ROOT))
        assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"
        lines = len(text.splitlines())
        assert lines <= MOST_LINES, f"{where} has more than {MOST_LINES} lines: split it"
        if path.name != "__init__.py":
            assert lines >= FEWEST_LINES or where in SHORT, f"{where} has {lines} lines: where does it belong?"
    for where in SHORT:
        assert len((ROOT / where).read_text().splitlines()) < FEWEST_LINES, f"{where} needs no reason any more"
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= MOST_TEST_LINES, f"{path} is too long: split it"


def test_no_test_imports_another() -> None:
    """What several need stands in tests/support."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[-1].startswith("test_")], path


# What a linter or type checker reads is no reason.
PRAGMA = re.compile(r"# *(noqa(: *[A-Z0-9]+(, *[A-Z0-9]+)*)?|type: *ignore(\[[\w, -]*\])?|fmt: *\w+)")
PRIVATE = re.compile(r"(.*\.)?_[A-Za-z]\w*")


def reasons(text: str) -> set[int]:
    """Return the lines of a test that a comment explains: its own, and the one below a line of comment."""
    comments = [one for one in tokenize.generate_tokens(io.StringIO(text).readline) if one.type == tokenize.COMMENT]
    told = [one for one in comments if PRAGMA.sub("", one.string).strip(" #")]
    return {one.start[0] for one in told} | {one.start[0] + 1 for one in told if one.line.lstrip().startswith("#")}


def private_names(node: ast.AST) -> Iterator[int]:
    """Yield the lines on which a piece of a test names what is private to another."""
    if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
        if ast.unparse(node.value) not in ("self", "cls", "super()"):
            yield node.end_lineno or node.lineno
    elif isinstance(node, ast.Import | ast.ImportFrom):
        named = [part for alias in node.names for part in alias.name.split(".")]
        named += (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
        if any(PRIVATE.fullmatch(part) for part in named):
            yield node.lineno
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("setattr", "delattr", "getattr"):
        for given in node.args[:2]:
            if isinstance(given, ast.Constant) and PRIVATE.fullmatch(str(given.value)):
                yield given.lineno
    elif isinstance(node, ast.Subscript) and re.search(r"\.__dict__\['_[A-Za-z]\w*'\]$", ast.unparse(node)):
        yield node.slice.lineno


def reaches(text: str) -> list[int]:
    """Return the lines of a test that reach into something private and do not say why."""
    named = {line for node in ast.walk(ast.parse(text)) for line in private_names(node)}
    return sorted(named - reasons(text))


def test_tests_use_public_names_or_say_why_not() -> None:
    """A test that knows the inside breaks whenever that changes, and proves nothing to who uses the outside."""
    found = {str(path.relative_to(ROOT)): reaches(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("thing._x", True), ("thing._x.y = 1", True), ("self.thing._x", True), ("thing()._x", True),
        ("from splitfed.run.ledger import _row", True), ("from splitfed.model._torchvision import x", True),
        ("import splitfed.model._torchvision", True), ("import splitfed.model._torchvision  # noqa: F401", True),
        ("thing._x  # type: ignore[attr-defined]", True),
        ("monkeypatch.setattr(thing, '_x', 1)", True), ("monkeypatch.setattr('splitfed.run._x', 1)", True),
        ("monkeypatch.delattr(thing, '_x')", True), ("getattr(thing, '_x')", True), ("thing.__dict__['_x']", True),
        ("(thing  # why\n._x)", True), ("x = 1  # one\nthing._x", True), ("# why\nx = 1\nthing._x", True),
        ("thing._x  # nothing public tells it", False), ("# nothing public tells it\nthing._x", False),
        ("import splitfed.model._torchvision  # noqa: F401  before timm", False),
        ("self._x", False), ("cls._x", False), ("super()._x", False), ("thing.__doc__", False), ("_x = _y", False),
        ("from splitfed import __version__", False), ("name.replace('-', '_')", False), ("'qkv' in '_norm'", False),
        ("names['_x']", False), ("monkeypatch.setattr(thing, 'x', '_y')", False),
    ],
)  # fmt: skip
def test_a_private_reach_is_seen(line: str, seen: bool) -> None:
    assert bool(reaches(line)) == seen


def test_no_file_names_a_folder_of_one_machine() -> None:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    # Put together here, so that this file is not one of those that it looks for.
    own = re.compile("|".join(re.escape("/" + folder + "/") for folder in ("root", "work", "home")))
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        if not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_text(errors="replace")
        found += [f"{name}:{n}: {line}" for n, line in enumerate(text.splitlines(), 1) if own.search(line)]
    assert not found, "\n".join(found)
