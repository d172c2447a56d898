"""A client whose server is gone: the last exit answers and says so, until the server is back."""

import csv
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from splitfed import Predictor, RemotePredictor
from splitfed.cli import main as cli
from splitfed.data.batches import normaliser
from splitfed.engines.deployment.processes import free_port
from splitfed.errors import RunError, SplitfedError, Unreached
from splitfed.inference.asking import Asking
from splitfed.inference.exits import load
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.serve import Service
from splitfed.wire.frame import Packed

PLAIN = ["plain={reducer: none, smashed: {codec: float32}}"]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def serving(port: int, tmp_path: Path) -> Callable[[Path], Service]:
    """Serves a run always at the same port."""
    return lambda run: Service(run, port=port, metrics_port=0, rates=PLAIN, batch=1, ledger=tmp_path / "ledger")


def by_the_second_exit(run: Path, images: list) -> list[str]:
    """What the last exit of the front says, by its own weights."""
    model = RunModel.read(run)
    exits, _, _ = load(model)
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
    with torch.no_grad():
        tokens = model.trunk.go_on(0, model.trunk.begin(normaliser(model.mean, model.std)(pixels)), 1)
        logits = exits.outputs["2"](exits.look(model.trunk.block(2, tokens)))
    return [model.classes[place] for place in logits.argmax(1).tolist()]


def test_it_answers_alone_and_comes_back(
    serving: Callable[[Path], Service], port: int, with_exits: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    how = {"state": tmp_path / "state", "batch": 1, "deadline": 5.0}
    second = by_the_second_exit(with_exits, digits)
    whole = Predictor(with_exits, batch=1).predict(digits)
    with serving(with_exits):
        predictor = RemotePredictor(f"127.0.0.1:{port}", **how)  # type: ignore[arg-type]
        assert predictor.predict(digits) == whole
    found = predictor.predict(digits)
    assert {one.exit for one in found} == {2}  # the last exit of the front
    assert all("127.0.0.1" in (one.alone or "") for one in found)
    assert [one.label for one in found] == second
    with serving(with_exits):
        limit = time.monotonic() + 20
        while (found := predictor.predict(digits)) != whole:
            assert time.monotonic() < limit, found
            time.sleep(0.05)
    predictor.close()


def test_whoever_is_sure_says_nothing_of_the_server(
    serving: Callable[[Path], Service], port: int, with_exits: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    with serving(with_exits), RemotePredictor(f"127.0.0.1:{port}", state=tmp_path / "state", confidence=0):
        pass
    with RemotePredictor(f"127.0.0.1:{port}", state=tmp_path / "state", confidence=0) as predictor:
        assert predictor.predict(digits) == Predictor(with_exits, confidence=0).predict(digits)


def test_without_exits_it_is_a_problem_of_each_image(
    serving: Callable[[Path], Service], port: int, finished: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    with serving(finished):
        predictor = RemotePredictor(f"127.0.0.1:{port}", state=tmp_path / "state")
        with pytest.raises(RunError, match="has no exits that take part"):
            RemotePredictor(f"127.0.0.1:{port}", state=tmp_path / "state", confidence=0.5)
    for one in predictor.predict(digits):
        assert f"127.0.0.1:{port}" in (one.problem or "")
        assert one.label is None
    predictor.close()


def test_an_answer_that_takes_too_long_is_not_waited_for(
    serving: Callable[[Path], Service], port: int, with_exits: Path, digits: list, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slow, answers = [0.6], Asking.answers

    def late(self: Asking, asked: list) -> list[Packed]:
        time.sleep(slow[0])
        return answers(self, asked)

    monkeypatch.setattr(Asking, "answers", late)
    with serving(with_exits), RemotePredictor(f"127.0.0.1:{port}", state=tmp_path / "state", deadline=0.3) as predictor:
        (found,) = predictor.predict(digits[:1])
        assert (found.exit, "within 0.3 s" in (found.alone or "")) == (2, True)
        slow[0] = 0.0
        time.sleep(0.5)
        (found,) = predictor.predict(digits[:1])  # the late answer to another request is no answer to this
        assert found == Predictor(with_exits).predict(digits[:1])[0]


def fronts(state: Path) -> list[Path]:
    return sorted(state.rglob("*.safetensors"))


def test_a_front_is_fetched_once_and_a_damaged_one_anew(
    serving: Callable[[Path], Service], port: int, with_exits: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    where, state = f"127.0.0.1:{port}", tmp_path / "state"
    expected = Predictor(with_exits, confidence=0).predict(digits)

    def ask() -> int:
        with RemotePredictor(where, state=state, confidence=0) as predictor:
            assert predictor.predict(digits) == expected
            return predictor.bytes.get(("down", "front"), 0)

    with pytest.raises(Unreached, match="nothing of it is kept"):
        RemotePredictor(where, state=state, deadline=1)
    with serving(with_exits) as service:
        size = ask()
        (file,) = fronts(state)
        assert size == file.stat().st_size == len(service.backs.now.bundle)
        assert ask() == 0
        whole = file.read_bytes()
        for damaged in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
            file.write_bytes(damaged)
            assert ask() == size
            assert file.read_bytes() == whole
        assert service.tally.sums()[0, "down", "front"][1] == 4 * size
    assert ask() == 0  # nobody answers, and what was kept does
    file.write_bytes(whole[:-1])
    with pytest.raises(Unreached, match="nothing of it is kept"):
        RemotePredictor(where, state=state, deadline=1)


def test_other_peoples_words_are_refused(tmp_path: Path, with_exits: Path) -> None:
    with pytest.raises(SplitfedError, match="is no server's address"):
        RemotePredictor("two words", state=tmp_path)
    with pytest.raises(RunError, match="name one of them"):
        RemotePredictor("127.0.0.1", state=tmp_path, confidence=0.5, accuracy=0.5)


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["splitfed", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_command_asks_a_host_and_says_who_was_alone(
    serving: Callable[[Path], Service], port: int, with_exits: Path, digits: list, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    digits[0].save("one.png")
    where = f"127.0.0.1:{port}"
    good = Predictor(with_exits).predict("one.png")[0]
    with serving(with_exits):
        assert run_cli(monkeypatch, "predict", where, "one.png") == 0
        assert capsys.readouterr().out == f"one.png: {good.label} {100 * (good.confidence or 0):.1f}%\n"
    words = ("predict", where, "one.png", "--deadline", "1")
    assert run_cli(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert out.startswith("one.png: ")
    assert "(exit after block 2, alone: " in out
    assert run_cli(monkeypatch, *words, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["exit"], where in said["alone"]) == (2, True)
    assert run_cli(monkeypatch, *words, "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["exit"], where in row["alone"]) == ("2", True)


def test_what_stands_there_is_a_run_unless_it_is_said_to_be_a_server(
    with_exits: Path, digits: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    digits[0].save("one.png")
    shutil.copytree(with_exits, "localhost")
    assert run_cli(monkeypatch, "predict", "localhost", "one.png") == 0
    for words, told in (
        (["localhost", "--server", "--deadline", "1"], "nobody answers at localhost:9094"),
        (["localhost", "--rate", "run"], "--rate is for a server, and localhost is a run"),
        (["otherhost.invalid", "--deadline", "1", "--insecure"], "nor is there a run of that name here"),
        (["otherhost.invalid", "--round", "3"], "--round is for runs, and otherhost.invalid is a server"),
        (["runs/none"], "there is no such run"),
    ):
        capsys.readouterr()
        assert run_cli(monkeypatch, "predict", words[0], "one.png", *words[1:]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "Traceback" not in error
