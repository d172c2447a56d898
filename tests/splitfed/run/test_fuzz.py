"""All that can happen to the files of a run's folder, for minutes: a run goes on to the same end, or a line says which
file is why not; whoever reads a finished run gets its figures, or such a line."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import small
from hypothesis import strategies as st
from outcomes import outcome

from splitfed import compare, export, simulate
from splitfed.errors import SplitfedError
from splitfed.run.observer import Observer

pytestmark = pytest.mark.slow

Draw = Callable[[Any], Any]
PLAN = [
    "federation.local_epochs=null", "federation.local_steps=1", "federation.rounds=4", "data.limit=48",
    "data.test_limit=10", "evaluation={held_out: 0.2}", "federation.mode=sfl-v1", "federation.strategy=FedAdam",
    "training.client_state=keep", "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: true}",
]  # fmt: skip
CELLS = st.one_of(
    st.integers(-(2**63), 2**64).map(str), st.floats().map(str), st.text(max_size=5),
    st.sampled_from(["", "nan", "1e999", "-1", "1.5", "0x1", "9" * 5000, '"', "up", "data", "round"]),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=4,
)


class Impatient(Observer):
    """Stops a run in its last round."""

    def progress(self, round: int, share: float) -> None:
        if round == 4:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was stopped, and the same one that was not."""
    root = tmp_path_factory.mktemp("files")
    with pytest.raises(KeyboardInterrupt):
        simulate(small(*PLAN), runs=root / "stopped", observers=[Impatient()])
    (folder,) = (root / "stopped").iterdir()
    return folder, simulate(small(*PLAN), runs=root / "whole").folder


def other_bytes(draw: Draw, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    new = draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"\0" * 100, b"\xff", b"\r\n", b"\n", b","])))
    return draw(st.sampled_from([
        data[:at], data[at:], data[:at] + new + data[at:], data[:at] + new + data[at + len(new) :], data + data[at:],
        data[:at] + bytes(len(data) - at), data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + data,
    ]))  # fmt: skip


def other_table(draw: Draw, data: bytes) -> bytes:
    """Return a CSV with a cell, a line or a column changed."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    if not rows:
        return other_bytes(draw, data)
    at, how = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, 4))
    if how == 0:
        rows[at][draw(st.integers(0, len(rows[at]) - 1))] = draw(CELLS)
    elif how == 1:
        del rows[at]
    elif how == 2:
        rows.insert(draw(st.integers(0, len(rows))), rows[at])
    elif how == 3:
        rows[at].append(draw(CELLS))
    else:
        column = draw(st.integers(0, len(rows[0]) - 1))
        rows = [row[:column] + row[column + 1 :] for row in rows]
    return b"".join(",".join(row).encode("utf-8", "surrogatepass") + b"\n" for row in rows)


def other_json(draw: Draw, data: bytes) -> bytes:
    """Return a JSON file with a value or a key changed."""
    root = [json.loads(data)]
    spot: Any = root
    key: Any = 0
    while isinstance(spot[key], list | dict) and spot[key] and draw(st.integers(0, 3)):
        spot = spot[key]
        key = draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else list(range(len(spot)))))
    if isinstance(spot, dict) and draw(st.booleans()):
        spot[draw(st.text(max_size=4))] = spot.pop(key)
    else:
        spot[key] = draw(JSON)
    return json.dumps(root[0]).encode()


def other_file(draw: Draw, path: Path) -> None:
    """Change what is in a file, or what is there in its place."""
    how = draw(st.integers(0, 9))
    if how == 0:
        path.unlink()
        draw(st.sampled_from([lambda: None, path.mkdir, path.touch, lambda: path.symlink_to("nowhere")]))()
        return
    data = path.read_bytes()
    change = {".csv": other_table, ".json": other_json}.get(path.suffix, other_bytes) if how > 3 else other_bytes
    path.write_bytes(change(draw, data))


def harmed(draw: Draw, whole: Path, copy: Path) -> tuple[Path, list[Path]]:
    """Return a copy of a run's folder in which some files are others, and which these are."""
    shutil.rmtree(copy, ignore_errors=True)
    folder = Path(shutil.copytree(whole, copy / whole.name))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    paths = draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True))
    for path in paths:
        other_file(draw, path)
    return folder, paths


def told(error: SplitfedError, paths: list[Path], head: str = "") -> None:
    """Check that the text is a line, below one that says what it is about, which names one of these files or its
    folder."""
    text = str(error).removeprefix(head)
    if any(path.name == "scenario.yaml" for path in paths):
        return  # whose mistakes have a line each, and may be about anything
    assert text.isprintable()
    assert any(name in text for path in paths for name in (path.name, path.parent.name)), text


@pytest.mark.long
def test_a_run_goes_on_to_the_same_end_or_a_line_says_why_not(stopped, fuzz, tmp_path) -> None:
    whole, expected = stopped[0], outcome(stopped[1])

    def check(data) -> None:
        folder, paths = harmed(data.draw, whole, tmp_path / "copy")
        try:
            simulate(resume=folder)
        except SplitfedError as error:
            told(error, paths)
            return
        if outcome(folder) != expected:  # a client lacked what it had been sent, and was sent it again
            assert "are not here" in (folder / "log.txt").read_text()

    fuzz(check, st.data(), seconds=45)


def test_who_reads_a_finished_run_gets_its_figures_or_a_line(stopped, fuzz, tmp_path) -> None:
    def check(data) -> None:
        folder, paths = harmed(data.draw, stopped[1], tmp_path / "copy")
        for read in (
            lambda: compare([folder]).to_csv(),
            lambda: compare([folder]).grouped("bytes").to_csv(at=10_000),
            lambda: export(folder, tmp_path / "model.safetensors", force=True),
        ):
            try:
                read()
            except SplitfedError as error:
                told(error, paths, "no finished run to compare\n")

    fuzz(check, st.data(), seconds=30)
