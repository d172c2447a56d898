"""Whatever happens to a run's folder, the run ends as if nothing had, or a line names the file and the way out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ADC, full_disk, small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outcomes import outcome

from splitfed import Scenario, simulate
from splitfed.errors import SplitfedError, WriteError
from splitfed.reports.study.comparison import compare
from splitfed.run.folder import create
from splitfed.run.observer import Observer

KEPT = ["training.client_state=keep", "compression.front_weights.delta=true", "federation.cohort=2"]


def scenario(*overrides: str) -> Scenario:
    return small(
        "federation.local_epochs=null", "federation.local_steps=1", "federation.rounds=4", "data.limit=48",
        "data.test_limit=10", "evaluation={held_out: 0.2}", *overrides,
    )  # fmt: skip


def interrupted(plan: Scenario, runs: Path, round: int) -> Path:
    """Return the folder of a run that was stopped in a round."""

    class Impatient(Observer):
        def progress(self, at: int, share: float) -> None:
            if at == round:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=runs, observers=(Impatient(),))
    (folder,) = runs.iterdir()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, Path]:
    """A run that was stopped in its last round, what it should have come to, and where copies of it may lie."""
    root, plan = tmp_path_factory.mktemp("damage"), scenario("training.client_state=keep")
    return interrupted(plan, root / "stopped", 4), outcome(simulate(plan, runs=root / "whole").folder), root / "copy"


# What happens to a file; a share says where in it.
HARMS = {
    "cut": lambda text, at: text[:at],
    "flip": lambda text, at: text[:at] + bytes([text[at] ^ 4]) + text[at + 1 :] if at < len(text) else text,
    "zero": lambda text, at: text[:at] + bytes(len(text) - at),
    "double": lambda text, at: text + text[at:],
    "lines": lambda text, at: b"".join(line * (1 + (i == at % 7)) for i, line in enumerate(text.splitlines(True))),
    "encode": lambda text, at: text[:at] + "é".encode("latin-1") + text[at:],
}


def harm(path: Path, how: str, share: float) -> None:
    if how in HARMS:
        text = path.read_bytes()
        path.write_bytes(HARMS[how](text, int(share * len(text))))
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)


def whole_or_told(folder: Path, expected: dict, path: Path) -> None:
    """Resume a run, and check that it ends as it should have, or that a line says why it does not."""
    told = None
    try:
        simulate(resume=folder)
    except SplitfedError as error:
        told = str(error)
    if told is None:
        assert outcome(folder) == expected
    else:
        # A scenario's mistakes are a line each, and what is altered in it may be what a line is about.
        if path.name != "scenario.yaml":
            assert "\n" not in told
            assert path.name in told or path.parent.name in told, told


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)


def damaged(runs: tuple[Path, dict, Path], number: int, how: str, share: float) -> None:
    whole, expected, copy = runs
    shutil.rmtree(copy, ignore_errors=True)
    folder = Path(shutil.copytree(whole, copy / whole.name))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[number % len(files)]
    harm(path, how, share)
    whole_or_told(folder, expected, path)


ANY = given(number=st.integers(0, 99), how=st.sampled_from([*HARMS, "delete", "folder", "pipe"]), share=st.floats(0, 1))


@ANY
@settings(SETTINGS, max_examples=20)
def test_a_damaged_file_is_named_or_does_no_harm(runs, number: int, how: str, share: float) -> None:
    damaged(runs, number, how, share)


@pytest.mark.parametrize("kept", [["training.client_state=keep"], KEPT], ids=["optimisers", "differences"])
def test_an_older_checkpoint_leads_to_the_same_end(kept: list[str], tmp_path: Path) -> None:
    """What clients keep goes back as far as checkpoints do."""
    plan = scenario(*ADC, *kept, "federation.rounds=5", "checkpoints.keep=3")
    expected = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    folder = interrupted(plan, tmp_path / "stopped", 5)
    sent = (folder / "ledger.csv").read_text().count("\n")
    for newest in sorted((folder / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(newest)
    simulate(resume=folder)
    assert outcome(folder) == expected
    wasted = (folder / "wasted.csv").read_text().splitlines()
    assert len({line.split(",")[1] for line in wasted[1:]} & {"3", "4"}) == 2, "what was sent is counted"
    assert sent


def test_what_a_client_kept_is_missed(tmp_path: Path) -> None:
    plan = scenario("training.client_state=keep")
    folder = interrupted(plan, tmp_path, 4)
    for path in (folder / "clients" / "000001").iterdir():
        path.unlink()
    with pytest.raises(SplitfedError, match=r"000001/000003\.safetensors: what this client kept of round 3 is gone"):
        simulate(resume=folder)


def test_a_damaged_checkpoint_names_the_one_before_it(tmp_path: Path) -> None:
    plan = scenario()
    folder = interrupted(plan, tmp_path / "one", 3)
    harm(folder / "checkpoints/round-000002/model.safetensors", "flip", 0.7)
    with pytest.raises(SplitfedError, match=r"model\.safetensors: .*; delete \S+round-000002 to go on from round 1"):
        simulate(resume=folder)
    shutil.rmtree(folder / "checkpoints/round-000001")
    with pytest.raises(SplitfedError, match=r"model\.safetensors: .*; no other checkpoint fits: start a new run"):
        simulate(resume=folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(SplitfedError, match=r"metrics\.csv: has rounds, and .* no checkpoint"):
        simulate(resume=folder)


def test_strangers_in_the_folder_are_no_checkpoints(tmp_path: Path) -> None:
    plan = scenario()
    expected = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    folder = interrupted(plan, tmp_path / "stopped", 2)
    strangers = [folder / "checkpoints" / name for name in ("round-000009", "round-copy", "round-7", ".new")]
    for path in strangers[:1] + strangers[3:]:
        path.write_text("a file")
    for path in strangers[1:3]:
        path.mkdir()
    (folder / "open-x.csv").write_text("a stranger")
    simulate(resume=folder)
    assert not strangers[3].exists()
    strangers[0].unlink()
    for path in strangers[1:3]:
        path.rmdir()
    assert outcome(folder) == expected


def test_a_scenario_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = interrupted(scenario(), tmp_path, 2)
    text = (folder / "scenario.yaml").read_text()
    (folder / "scenario.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(SplitfedError, match=r"scenario\.yaml: is not what this run began with"):
        simulate(resume=folder)


def test_a_finished_run_whose_files_are_damaged_is_told(tmp_path: Path) -> None:
    folder = simulate(scenario(), runs=tmp_path / "run").folder
    for name, how in (
        (n, h) for n in ("summary.json", "metrics.csv", "ledger.csv") for h in ("cut", "double", "folder")
    ):
        one = Path(shutil.copytree(folder, tmp_path / f"{name}-{how}"))
        harm(one / name, how, 0.5)
        with pytest.raises(SplitfedError, match=name):
            compare([one]).grouped()


def test_a_finished_run_is_not_measured_by_an_older_checkpoint(tmp_path: Path) -> None:
    """One that has lost the state of its last round says nothing against files that are whole."""
    run = simulate(scenario(), runs=tmp_path, observers=())
    (run.folder / "checkpoints" / "round-000004" / "state.json").unlink()
    assert str(run.summary.cut_bytes) in compare([run.folder]).to_csv()


def test_a_run_folder_is_there_with_its_scenario_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            create(small(), tmp_path)
    assert not list(tmp_path.iterdir())
    first, second = create(small(), tmp_path), create(small(), tmp_path)
    assert first != second
    assert (second / "scenario.yaml").is_file()


def test_a_full_disk_is_a_line_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """Files can have 12 kB: the curves fail first, then the checkpoint."""
    with full_disk(12 << 10), pytest.raises(WriteError) as told:
        simulate(scenario(), runs=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert "safetensors: cannot be written (File too large); " in str(told.value)
    assert str(told.value).endswith(f"splitfed simulate --resume {folder}")
    assert "\n" not in str(told.value)
    simulate(resume=folder)


def test_what_only_informs_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = interrupted(scenario(), tmp_path, 2)
    for name in ("log.txt", "environment.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
    shutil.rmtree(folder / "tensorboard")
    (folder / "tensorboard").write_text("a file")
    simulate(resume=folder)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    for name in ("log.txt", "environment.json", "tensorboard"):
        assert any(name in line and line.endswith("the run goes on without it") for line in told)


@pytest.mark.slow
def test_a_reader_who_leaves_ends_a_run_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(scenario("federation.rounds=50").to_yaml())
    command = f"{sys.executable} -m splitfed simulate small.yaml | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 141
    assert all(line.endswith(" ...") for line in done.stderr.splitlines())  # what takes long is said, and no more
    assert len(done.stdout.splitlines()) == 1
    assert os.listdir(tmp_path / "runs")
