"""How the four folders hang together, and what importing them costs."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import splitfed
from splitfed.cli.listing.kinds import SORTS
from splitfed.compression.plugins import packages

PACKAGES = ("splitfed", "clients", "server", "compression")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = (
    "torch", "torchvision", "timm", "flwr", "flwr_datasets", "ray", "pydantic", "numpy", "datasets", "sklearn",
    "tensorboard",
)  # fmt: skip
# The composition roots: one hands both apps to an engine, the other starts the side that a command names.
ROOTS = ("simulation.py", "cli_deploy.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, package: str) -> set[str]:
    """Return the modules that a tree imports, and the names it takes from them, as dotted names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level else base
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def sides(tree: ast.AST, package: str) -> set[str]:
    """Return which of `clients` and `server` a tree imports."""
    dotted = (module.removeprefix("splitfed.").split(".")[0] for module in imports(tree, package))
    return {"clients", "server"} & set(dotted)


def outside_functions(tree: ast.Module) -> ast.Module:
    """Return a copy of a module without its functions: what runs when it is imported."""

    class Hollow(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return ast.Pass()

        visit_AsyncFunctionDef = visit_FunctionDef

    return Hollow().visit(tree)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
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
    assert Path(run(code).strip()) == ROOT / "compression" / "reducers" / "adc.py"


def test_the_two_sides_do_not_know_each_other() -> None:
    """Nor does what both share know them, but for the composition root, inside functions."""
    for path in MODULES:
        folder, tree = path.parent.name, ast.parse(path.read_text())
        package = "splitfed" if folder == "splitfed" else f"splitfed.{folder}"
        allowed = {folder} & {"clients", "server"}
        if folder == "splitfed" and path.name in ROOTS:
            assert sides(tree, package) == {"clients", "server"}, f"{path.name} is no composition root any more"
            tree = outside_functions(tree)
        assert sides(tree, package) <= allowed, name_of(path)


def test_the_check_sees_every_way_to_import() -> None:
    for line in (
        "import splitfed.server.app",
        "from splitfed.server import app",
        "from splitfed import server",
        "from ..server.app import app",
        "from .. import server",
        "import server",
        "def f():\n    from splitfed.server.app import app",
    ):
        assert sides(ast.parse(line), "splitfed.clients") == {"server"}, line
    assert not sides(ast.parse("from splitfed.run.observer import server_like"), "splitfed.clients")
    assert not sides(outside_functions(ast.parse("def f():\n    import splitfed.server.app")), "splitfed")


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
    ],
)
def test_reading_a_scenario_loads_neither_torch_nor_flower(start: str) -> None:
    """Settings stand in modules of their own, and what they build is imported when it is built."""
    if packages():
        pytest.skip(f"{', '.join(packages())} may import anything")
    assert not set(HEAVY) - {"pydantic"} & loaded_by(start)


def loaded_by(start: str) -> set[str]:
    loaded = run(f"import sys\n{start}\nprint('loaded:', *sorted(m for m in sys.modules if '.' not in m))")
    names = set(loaded.rpartition("loaded:")[2].split())
    assert "splitfed" in names
    return names


def test_every_exported_name_is_there() -> None:
    assert set(splitfed.__all__) == {*splitfed._WHERE, "__version__"}
    for name in splitfed.__all__:
        assert getattr(splitfed, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        _ = splitfed.simulat  # type: ignore[attr-defined]


def test_no_exported_name_is_a_module_too() -> None:
    """Importing a module `splitfed.x` sets the attribute `x` of the package, and what was exported under it is gone."""
    modules = {path.stem for path in (ROOT / "splitfed").glob("*.py")} | {*PACKAGES, "scenarios"}
    assert not set(splitfed.__all__) & modules


def test_modules_are_short_and_say_what_they_are() -> None:
    for path in MODULES:
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"
        assert len(text.splitlines()) <= 250, f"{name_of(path)} has more than 250 lines: split it"


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
