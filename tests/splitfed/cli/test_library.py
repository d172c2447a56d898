"""splitfed from Python: scenarios from dicts, what notebooks show, and the example that ships."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from helpers import BASE, small
from places import ROOT, python_path

import splitfed.reports.live.notebook
from splitfed import Observer, Scenario, estimate, simulate, simulation
from splitfed.errors import ScenarioError
from splitfed.reports.costs.text import text as estimate_text
from splitfed.reports.live.console import in_file
from splitfed.scenario.document import read

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_a_dict_is_what_a_file_is() -> None:
    sections = read(BASE, "base").data
    before = json.dumps(sections)
    longer = ["model.cut=2", "federation.rounds=4"]
    found = Scenario.from_dict(sections, longer, preset="small")
    assert found == Scenario.parse(BASE, overrides=longer, preset="small")
    del sections["federation"]["local_epochs"]  # beside a preset the file's own win
    assert found == Scenario.from_dict(sections | {"preset": "small"}, longer)
    sections = read(BASE, "base").data
    assert json.dumps(sections) == before


def test_mistakes_in_a_dict_are_named_all_at_once() -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario.from_dict({"model": {"cutt": 1, "name": "x", "cut": 1, "image_size": 8}, "data": {"path": "digits"}})
    assert error.value.problems == [
        "scenario: model.cutt: unknown key, did you mean 'cut'?",
        "scenario: federation: is missing",
    ]


def test_nothing_is_printed_outside_a_notebook(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    simulate(small("federation.rounds=1"), runs=tmp_path)
    assert capfd.readouterr().out == ""


class Cell:
    """What a notebook's cell shows, and how often it changed."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> "Cell":
        assert raw
        assert display_id
        assert not self.states, "a second output"
        self.update(content, raw=raw)
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        self.states.append(content["text/plain"])


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cell:
    """Pretend to be a notebook in an empty folder."""
    cell = Cell()
    display = type(sys)("IPython.display")
    display.display = cell.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", type(sys)("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(simulation, "in_notebook", lambda: True)
    monkeypatch.setattr(splitfed.reports.live.notebook, "OFTEN", 0.0)
    monkeypatch.chdir(tmp_path)
    return cell


def test_a_notebook_shows_rounds_in_one_output(cell: Cell, tmp_path: Path) -> None:
    result = simulate(small())
    last = cell.states[-1]
    assert f"run folder     runs/{result.folder.name}" in last
    assert str(tmp_path) not in last
    assert "test accuracy" in last
    assert [line.split()[0] for line in last.splitlines() if line.strip()[:2] in ("1/", "2/")] == ["1/2", "2/2"]
    bars = [state.splitlines()[-1] for state in cell.states if "[" in state.splitlines()[-1]]
    assert bars[0] == f"round 1/2 [{'.' * 32}]   0%"
    assert f"round 2/2 [{'#' * 32}] 100%" in bars
    assert "[" not in last.splitlines()[-1]


def test_a_bar_moves_a_few_times_a_second_at_most(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitfed.reports.live.notebook, "OFTEN", 1e9)
    simulate(small())
    assert not [state for state in cell.states if "[#" in state]
    assert any("round 2/2 [." in state for state in cell.states)


def test_a_notebook_that_was_stopped_says_how_to_go_on(cell: Cell) -> None:
    class Impatient(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(small(), observers=[splitfed.reports.live.notebook.Notebook(), Impatient()])
    (folder,) = Path("runs").iterdir()
    assert cell.states[-1].endswith(f"splitfed simulate --resume {folder}\n")
    assert simulate(resume=folder, observers=()).summary.rounds == 2


def test_observers_can_be_left_out_in_a_notebook_too(cell: Cell) -> None:
    simulate(small("federation.rounds=1"), observers=())
    assert not cell.states


def test_text_for_a_file_is_plain_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich takes every console for the cell's, and FORCE_COLOR, which kernels set, for a terminal's."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # rich asks nothing public
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    in_file(file).print("one", style="bold")
    assert file.getvalue() == "one\n"
    assert "smashed" in estimate_text(estimate(small()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_ship_executed_and_name_no_machine(path: Path) -> None:
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = json.dumps([{**o, "data": {**o.get("data", {}), "image/png": ""}} for o in outputs])
    assert not [folder for folder in ("/tmp", "/root", "/home", "/Users", "/work", "C:\\") if folder in shown]


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    """In a kernel of their own; in the test's folder, so that nothing is left in the tree."""
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install splitfed[dev]")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env={**os.environ, "PYTHONPATH": python_path(ROOT)})
    assert all(output.output_type != "error" for cell in notebook.cells for output in cell.get("outputs", []))
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 2
