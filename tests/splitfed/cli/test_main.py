"""The command line: what it says, where it says it, and the code it ends with."""

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest
from places import WANTED

import splitfed
from splitfed.cli import main as cli
from splitfed.cli.listing.kinds import SORTS
from splitfed.data.dataset import forget
from splitfed.errors import RunError
from splitfed.reports.sweep.plan import Sweep
from splitfed.reports.sweep.pool import Swept
from splitfed.run.ledger import COLUMNS
from splitfed.run.metrics import HEADER, Metrics
from splitfed.run.summary import Summary
from splitfed.scenario.scenario import shipped

GOOD = """
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 8, args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
data: {path: digits, limit: 60, test_limit: 30}
federation: {clients: 2, rounds: 1, local_steps: 1}
engine: {threads: 1}
"""
BAD = """\
model: {name: vit_tiny_patch16_224, cutt: 1, image_size: 8}
data: {path: digits}
federation: {clients: none, rounds: 1}
trainig: {}
"""
SUMMARY = Summary(
    "one", 0, "inline", 2, 0.875, 440_040, 740_040, 0, 8_000_040, 18.18, 12.43, 75.6, 0.51, 0.9, 9_200_040, "rounds",
    "adc", "sfl-v1",
)  # fmt: skip


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Run:
    """Run a command line in this process, from a folder of its own, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["splitfed", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a run is started."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(splitfed, "simulate", started, raising=False)


def finished_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(asdict(SUMMARY)))
    return folder


def refused(ended: Ended, *texts: str) -> None:
    """Check that a mistake of the user's is told on stderr alone, in its own words."""
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    for text in texts:
        assert text in ended.err


def test_help_lists_the_commands(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    for command in ("simulate", "validate", "compare"):
        assert re.search(rf"^  {command}  ", ended.out, re.MULTILINE)


def test_without_a_command_there_is_help(run: Run) -> None:
    ended = run()
    assert ended.code == 2
    assert "simulate" in ended.out + ended.err


def test_every_option_is_explained(run: Run) -> None:
    out = run("simulate", "--help").out
    for option in ("--set", "--seed", "--device", "--engine", "--runs", "--resume", "--dry-run"):
        assert re.search(rf"{option}\b.*\w", out), option


@pytest.mark.parametrize("command", ["simulate", "serve", "join", "validate", "sweep", "compare", "certs"])
def test_every_argument_is_explained_and_nothing_is_escaped(run: Run, command: str) -> None:
    out = run(command, "--help").out
    (argument,) = re.findall(r"^  \[?([A-Z]+)", out.split("Arguments:")[1].split("Options:")[0], re.MULTILINE)
    assert re.search(rf"\b{argument} (is|are) ", out)
    assert "\\" not in out


def test_version(run: Run) -> None:
    assert run("--version") == Ended(0, f"splitfed {splitfed.__version__}\n", "")


def test_a_package_that_is_not_installed_is_one_line(run: Run, without: Callable[..., None]) -> None:
    forget()
    without("sklearn", "sklearn.datasets")
    refused(run("data", "digits"), "scikit-learn is not installed, and the data set digits needs it: pip install")


def test_an_unknown_command_and_an_unknown_option(run: Run) -> None:
    refused(run("simulat"), "No such command")
    refused(run("simulate", "digits", "--sett", "a=1"), "No such option", "--set")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_what_ships_is_valid(run: Run, name: str) -> None:
    ended = run("validate", name, *(part for change in WANTED.get(name, ()) for part in ("--set", change)))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{name}: valid (")


def test_validate_takes_a_file_and_changes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    assert run("validate", "good.yaml") == Ended(
        0, "good.yaml: valid (good: vit_tiny_patch16_224 cut after block 1)\n", ""
    )
    refused(run("validate", "good.yaml", "--set", "federation.rounds=0"), "--set federation.rounds=0: ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.cut=9", "--set model.cut=9: model.cut: is 9, but the model has blocks 1 to 2"),
        ("model.name=vit_tinny_patch16_224", "model.name: timm has no model 'vit_tinny_patch16_224', did you mean "),
        ("model.weights=missing.safetensors", "model.weights: no such file: missing.safetensors"),
        ("model.args.class_token=false", "model.args.class_token: "),
        ("model.args.patch_size=3", "model.args.patch_size: images of 8 pixels "),
        ("federation.strategy=missing.module:Class", "federation.strategy: missing.module:Class cannot be imported"),
    ],
)
def test_validate_refuses_models_that_a_run_would_refuse(run: Run, tmp_path: Path, change: str, told: str) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    ended = run("validate", "good.yaml", "--set", change)
    refused(ended, told)
    assert ended.err.startswith(f"--set {change}: ")
    assert ended.err.count("\n") == 1
    assert ended == run("simulate", "good.yaml", "--set", change, "--dry-run")
    assert ended == run("serve", "good.yaml", "--set", change)
    assert not (tmp_path / "runs").exists()


def test_validate_opens_the_data_if_asked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    ended = run("validate", "good.yaml", "--data", "--set", "data.limit=5000")
    assert (ended.code, ended.err) == (0, "")
    assert "images to train on" in ended.out
    assert "data.limit: 5,000 are asked for, 1,294 images to train on are there" in ended.out
    wrong = ["--set", "data.path=nowhere", "--set", "model.cut=9"]
    assert "data.path" not in run("validate", "good.yaml", *wrong).err
    ended = run("validate", "good.yaml", "--data", *wrong)
    refused(ended, "--set data.path=nowhere: data.path: ", "--set model.cut=9: model.cut: ")
    refused(
        run("validate", "good.yaml", "--data", "--set", "federation.clients=2000"),
        "--set federation.clients=2000: federation.clients: ",
    )


def test_mistakes_of_the_model_come_with_the_others(run: Run, tmp_path: Path) -> None:
    text = GOOD.replace("cut: 1", "cut: 9").replace("patch_size: 4", "patch_size: 3") + "trainig: {}\n"
    (tmp_path / "bad.yaml").write_text(text)
    ended = run("validate", "bad.yaml", "--set", "federation.cohort=5")
    refused(ended)
    assert [line.split(": ")[:2] for line in ended.err.splitlines()] == [
        ["bad.yaml:2", "model.args.patch_size"], ["bad.yaml:2", "model.cut"], ["bad.yaml:6", "trainig"],
        ["--set federation.cohort=5", "federation.cohort"],
    ]  # fmt: skip
    assert ended == run("simulate", "bad.yaml", "--set", "federation.cohort=5")


def test_validate_takes_several_files_and_sweeps(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "study.yaml").write_text("scenario: good.yaml\npoints:\n  a:\n  b: {model.cut: 9}\nseeds: [0, 1]\n")
    ended = run("validate", "good.yaml", "bad.yaml", "study.yaml", "nowhere.yaml")
    assert (ended.code, ended.out.splitlines()) == (2, [
        "good.yaml: valid (good: vit_tiny_patch16_224 cut after block 1)"
    ])  # fmt: skip
    told = ended.err.splitlines()
    places = dict.fromkeys(line.partition(": ")[0] for line in told)
    assert list(places) == ["bad.yaml:1", "bad.yaml:3", "bad.yaml:4", "study.yaml:4", "nowhere.yaml"]
    assert told[-2].startswith("study.yaml:4: model.cut: is 9")
    (tmp_path / "study.yaml").write_text("scenario: good.yaml\npoints:\n  a:\nseeds: [0, 1]\n")
    assert run("validate", "study.yaml") == Ended(0, "study.yaml: valid (a sweep of 2 runs)\n", "")


def test_a_terminal_without_the_letters_gets_escapes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "läufe.yaml").write_text(GOOD)
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, "ascii"))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(err, "ascii"))
    assert run("validate", "läufe.yaml", "日本.yaml").code == 2
    sys.stdout.flush()
    sys.stderr.flush()
    assert out.getvalue().startswith(b"l\\xe4ufe.yaml: valid (l\\xe4ufe: ")
    assert err.getvalue().startswith(b"\\u65e5\\u672c.yaml: cannot be read: ")


def test_all_mistakes_of_a_file_are_told_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    ended = run("validate", "bad.yaml")
    refused(
        ended,
        "bad.yaml:1: model.cutt: unknown key, did you mean 'cut'?",
        "bad.yaml:3: federation.clients: ",
        "bad.yaml:4: trainig: unknown key, did you mean 'training'?",
    )
    assert all(re.match(r"bad\.yaml:\d+: ", line) for line in ended.err.splitlines())


@pytest.mark.usefixtures("never")
def test_simulate_refuses_what_validate_does(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    assert run("simulate", "bad.yaml") == run("validate", "bad.yaml")


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("command", ["simulate", "validate"])
def test_an_unknown_scenario(run: Run, command: str) -> None:
    refused(run(command, "digit"), "digit: no such file, and no scenario of this name", "did you mean 'digits'?")
    refused(run(command, "missing.yaml"), "missing.yaml: cannot be read: No such file")


@pytest.mark.usefixtures("never")
def test_simulate_needs_a_scenario(run: Run) -> None:
    refused(run("simulate"), "splitfed simulate digits")


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    "change",
    [
        ("--preset", "tiny"),
        ("--set", "seed=1"),
        ("--seed", "1"),
        ("--device", "cpu"),
        ("--engine", "inline"),
        ("--dry-run",),
    ],
    ids=lambda change: change[0],
)
def test_a_resumed_run_keeps_its_scenario(run: Run, change: tuple[str, ...]) -> None:
    refused(run("simulate", "--resume", "somewhere", *change), "--resume goes on with the run's own scenario")


def test_options_become_changes_of_the_scenario(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    given = {}
    monkeypatch.setattr(
        splitfed, "simulate", lambda scenario, **rest: given.update(rest, scenario=scenario), raising=False
    )
    assert run(
        "simulate", "digits", "--set", "model.cut=4", "--set", "federation.rounds=3", "--seed", 7, "--device", "cpu",
        "--engine", "inline", "--runs", tmp_path / "here",
    ) == Ended(0, "", "")  # fmt: skip
    scenario = given["scenario"]
    assert (scenario.model.cut, scenario.federation.rounds, scenario.seed) == (4, 3, 7)
    assert (scenario.training.client.device, scenario.training.server.device) == ("cpu", "cpu")
    assert (given["runs"], given["resume"]) == (tmp_path / "here", None)


def test_a_run_prints_its_table_and_can_be_compared(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    ended = run("simulate", "good.yaml", "--runs", "out")
    assert ended.code == 0
    for text in (
        "scenario    good",
        "1/1",
        "smashed",
        "cut_gradient",
        "front_weights",
        "test accuracy",
        "total factor",
    ):
        assert text in ended.out
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "summary.json").is_file()

    compared = run("compare", folder, "--csv", "table.csv")
    assert (compared.code, compared.err) == (0, "")
    assert str(folder) in compared.out
    assert (tmp_path / "table.csv").read_text().startswith("folder,scenario,seed,")

    refused(run("simulate", "--resume", folder), f"{folder}: is complete", f"splitfed compare {folder}")


def test_a_dry_run_trains_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    ended = run("simulate", "good.yaml", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "bytes of a round" in ended.out
    assert not (tmp_path / "runs").exists()


def test_run_folders_that_cannot_be_made_or_resumed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    refused(run("simulate", "good.yaml", "--runs", "good.yaml"), "cannot be created", "--runs")
    refused(run("simulate", "good.yaml", "--runs", "d\udce4"), "d\\udce4: is no UTF-8 text", "--runs")
    refused(run("simulate", "--resume", "nowhere"), "nowhere: no scenario.yaml in it, so this is no run folder")


def test_compare_tells_why_a_folder_is_left_out(run: Run, tmp_path: Path) -> None:
    done = finished_run(tmp_path / "done")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "ledger.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "open" / "metrics.csv").write_text(HEADER)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")

    ended = run("compare", "open", "broken", "nowhere", done)
    assert (ended.code, ended.err) == (0, "")
    assert "87.5 %" in ended.out
    for line in ("open: unfinished after round 0", "broken: summary.json: broken", "nowhere: there is no such folder"):
        assert f"\n{line}" in ended.out

    refused(run("compare", "open", "nowhere"), "no finished run to compare", "  open: ", "  nowhere: ")
    refused(run("compare", "nowhere"), "no finished run to compare", "  nowhere: there is no such folder")
    refused(run("compare", "done/summary.json"), "  done/summary.json: is a file, not the folder of a run")
    (tmp_path / "done" / "scenario.yaml").write_text(GOOD)
    refused(run("compare", "."), "  .: is not the folder of a run, but holds such folders: name them, for instance ")
    refused(run("compare"), "Missing argument")


def test_a_table_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    ended = run("compare", finished_run(tmp_path / "done"), "--csv", tmp_path / "no" / "table.csv")
    assert ended.code == 2
    assert ended.err == f"{tmp_path / 'no' / 'table.csv'}: cannot be written (No such file or directory)\n"


def test_compare_groups_at_a_budget_and_draws(run: Run, tmp_path: Path) -> None:
    done = finished_run(tmp_path / "done")
    (done / "ledger.csv").write_text(",".join(COLUMNS) + "\n")
    row = Metrics(1, 1.0, 1.0, 0.5, 1000, 2000, 1.0, 1, 1, 1, 1, 0.1, 0.1)
    (done / "metrics.csv").write_text(HEADER + row.line())
    ended = run("compare", done, "--by", "bytes", "--at", "1kB", "--csv", "table.csv", "--out", "figure.svg")
    assert (ended.code, ended.err) == (0, "")
    assert "at 1.00 kB" in ended.out
    assert "50.0 %" in ended.out
    written = [f"figure-{name}.svg" for name in ("curves", "total", "factors", "roles")]
    assert ended.out.splitlines()[-4:] == written
    assert all(Path(name).stat().st_size > 1000 for name in written)
    assert Path("table.csv").read_text().startswith("scenario,seeds,test_accuracy,")
    by_total = run("compare", done, "--by", "total", "--at", "2kB", "--csv", "total.csv", "--out", "total.svg")
    assert "at 2.00 kB total" in by_total.out
    assert "50.0 %" in by_total.out
    assert "at_total_bytes" in Path("total.csv").read_text()
    assert "total bytes sent so far" in Path("figure-total.svg").read_text()
    assert "cut bytes sent so far" in Path("total-curves.svg").read_text()
    for name, of in (("figure", "cut"), ("total", "total")):
        assert f"{of} factor: uncompressed bytes" in Path(f"{name}-factors.svg").read_text()
    refused(run("compare", done, "--at", "much"), "--at much: write a number of bytes, such as 50MB")
    refused(run("compare", done, "--at", "0"), "--at 0: ")
    refused(run("compare", done, "--out", "figure.bmp"), "--out figure.bmp: pictures are named *.png, *.pdf, *.svg")
    refused(run("compare", done, "--by", "size"), "--by", "bytes")


def test_compare_names_what_it_shows_but_cannot_draw(run: Run, tmp_path: Path) -> None:
    whole = finished_run(tmp_path / "whole")
    (whole / "ledger.csv").write_text(",".join(COLUMNS) + "\n")
    (whole / "metrics.csv").write_text(HEADER)
    bare = finished_run(tmp_path / "bare")
    ended = run("compare", whole, bare, "--out", "figure.svg")
    assert ended.code == 0
    assert ended.out.splitlines()[-1].startswith(f"{bare}: not drawn: metrics.csv: cannot be read")


def test_a_sweep_that_fails_in_part_says_so_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "study.yaml").write_text("scenario: good.yaml\nseeds: [0, 1]\n")
    done = finished_run(tmp_path / "done")
    (done / "ledger.csv").write_text(",".join(COLUMNS) + "\n")
    (done / "metrics.csv").write_text(HEADER)
    given = {}

    def swept(plan: Sweep, **rest: object) -> Swept:
        given.update(rest, plan=plan)
        return Swept([done], [(Path("runs/study/good-seed1"), "out of luck")])

    monkeypatch.setattr(splitfed, "sweep", swept, raising=False)
    ended = run("sweep", "study.yaml", "--jobs", 2, "--device", "cpu", "--set", "data.limit=50")
    assert ended.code == 2
    assert "87.5 %" in ended.out
    assert ended.err.splitlines() == [
        "1 of 2 runs failed; the same command tries again:", "  runs/study/good-seed1: out of luck"
    ]  # fmt: skip
    scenario = given["plan"].points[1].scenario
    assert (scenario.data.limit, scenario.training.client.device, given["jobs"]) == (50, "cpu", 2)
    refused(run("sweep", "study.yaml", "--jobs", 0), "--jobs")
    refused(run("sweep", "study.yaml", "--set", "a=1"), "--set a=1: a: unknown key")


def test_an_interrupted_sweep_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "study.yaml").write_text("scenario: good.yaml\n")
    monkeypatch.setattr(splitfed, "sweep", interrupted, raising=False)
    assert run("sweep", "study.yaml") == Ended(130, "interrupted; the same command goes on\n", "")


def test_list_narrows_by_a_pattern(run: Run) -> None:
    ended = run("list", "codecs", "*16")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["float16", "bfloat16"]
    refused(run("list", "codec"), "codec: cannot be listed, did you mean 'codecs'?")
    out = " ".join(run("list", "--help").out.split())
    for what in SORTS:
        assert what in out


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(RunError, match="no run folder"):
        run("--debug", "simulate", "--resume", "nowhere")
    refused(run("simulate", "--resume", "nowhere"), "no run folder")


def test_an_interrupt_ends_as_shells_expect(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(splitfed, "simulate", interrupted, raising=False)
    ended = run("simulate", "digits")
    assert ended.code == 130
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("{a: {share: 0.5, cut: 0}, b: {share: 0.5, cut: 3}}", "federation.profiles.a.cut: must be at least 1, not 0"),
        ("{a: {share: 0.5, cutt: 2}, b: {share: 0.5}}", "federation.profiles.a.cutt: unknown key, did you mean 'cut'?"),
        ("{a: {share: 0.5, device: {flops: -1}}, b: {share: 0.5, cut: 3}}", "federation.profiles.a.device.flops: must"),
        ("{a: 3, b: {share: 0.5, cut: 3}}", "federation.profiles.a: must be a section, not 3"),
    ],
)
def test_a_mistake_in_a_section_that_has_a_name_is_told_alone(run: Run, wrong: str, told: str) -> None:
    """What the model's rules read of the others is not there then."""
    setting = f"federation.profiles={wrong}"
    refused(run("validate", "digits", "--set", setting), f"--set {setting}: {told}")
