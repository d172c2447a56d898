"""Another checkpoint while clients ask: nobody's request is lost, and each is answered by the back that it names."""

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from splitfed import Prediction, Predictor, RemotePredictor
from splitfed.errors import RunError
from splitfed.inference.asking import Asked, Asking
from splitfed.inference.service.serve import Service
from splitfed.wire.frame import Packed

PLAIN = ["plain={reducer: none, smashed: {codec: float32}}"]


@pytest.fixture
def growing(copied: Path) -> Path:
    """A run that has come to round 7; round 8 is made by `grow`."""
    (copied / "checkpoints" / "round-000008").rename(copied / "later")
    return copied


def grow(run: Path) -> None:
    (run / "later").rename(run / "checkpoints" / "round-000008")


def by(run: Path, round: int, images: Sequence[Image.Image]) -> list[Prediction]:
    return Predictor(run, round=round, batch=1).predict(list(images))


def serving(run: Path, keep_old: float) -> Service:
    return Service(run, port=0, metrics_port=0, batch=1, rates=PLAIN, keep_old=keep_old)


def test_who_has_the_older_front_is_answered_by_the_older_back(growing: Path, digits: list, tmp_path: Path) -> None:
    with serving(growing, 60) as service:
        where, state = f"127.0.0.1:{service.port}", tmp_path / "state"
        with RemotePredictor(where, state=state, batch=1) as before:
            assert before.predict(digits) == by(growing, 7, digits)
            assert not service.backs.newer()
            grow(growing)
            assert service.backs.newer()
            assert service.reload() == "round 8 is served"
            assert service.reload() == "round 8 is served, as before"
            assert before.predict(digits) == by(growing, 7, digits)
            with RemotePredictor(where, state=state, batch=1) as after:
                assert after.predict(digits) == by(growing, 8, digits)
        assert 'splitfed_reloads_total{outcome="read"} 2' in service.metrics.text()


def test_when_it_is_gone_clients_fetch_the_front_anew(growing: Path, digits: list, tmp_path: Path) -> None:
    with serving(growing, 0) as service:
        with RemotePredictor(f"127.0.0.1:{service.port}", state=tmp_path / "state", batch=1) as predictor:
            predictor.predict(digits[:1])
            first = predictor.bytes["down", "front"]
            grow(growing)
            service.reload()
            assert predictor.predict(digits) == by(growing, 8, digits)
            assert predictor.bytes["down", "front"] == 2 * first
            assert predictor.predict(digits) == by(growing, 8, digits)
        # Some were on their way before the first was told; each was asked once more, and none was lost.
        sums = service.tally.sums()
        assert sums[0, "down", "answer"][0] == 1 + 2 * len(digits)


def test_what_waits_ends_on_the_back_that_it_named(
    growing: Path, digits: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    begun, go, answers = threading.Event(), threading.Event(), Asking.answers

    def held(asking: Asking, asked: Sequence[Asked]) -> list[Packed]:
        begun.set()
        assert go.wait(10)
        return answers(asking, asked)

    monkeypatch.setattr(Asking, "answers", held)
    found: list[Prediction] = []
    with serving(growing, 0) as service:

        def ask() -> None:
            with RemotePredictor(f"127.0.0.1:{service.port}", state=tmp_path, batch=1) as predictor:
                found.extend(predictor.predict(digits[:3]))

        client = threading.Thread(target=ask)
        client.start()
        assert begun.wait(10)
        while "splitfed_waiting 2\n" not in service.metrics.text():
            assert client.is_alive()
        grow(growing)
        service.reload()
        go.set()
        client.join(10)
    assert found == by(growing, 7, digits[:3])


def test_what_cannot_be_read_leaves_all_as_it_was(growing: Path, digits: list, tmp_path: Path) -> None:
    with serving(growing, 0) as service:
        grow(growing)
        broken = growing / "checkpoints" / "round-000008" / "model.safetensors"
        whole = broken.read_bytes()
        broken.write_bytes(whole[:1000])
        with pytest.raises(RunError, match="model"):
            service.reload()
        with RemotePredictor(f"127.0.0.1:{service.port}", state=tmp_path, batch=1) as predictor:
            assert predictor.predict(digits) == by(growing, 7, digits)
            broken.write_bytes(whole)
            service.reload()
            assert predictor.predict(digits) == by(growing, 8, digits)
        assert 'splitfed_reloads_total{outcome="failed"} 1' in service.metrics.text()


def test_a_round_that_is_named_stays(growing: Path) -> None:
    with Service(growing, port=0, metrics_port=0, rates=PLAIN, round=7) as service:
        grow(growing)
        assert not service.backs.newer()
        service.reload()
        assert service.backs.now.round == 7


def test_exits_of_other_weights_are_refused_with_the_way_out(with_exits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(with_exits, tmp_path / "run"))
    with pytest.raises(RunError, match="these exits belong to the weights after round 8"):
        Service(run, port=0, metrics_port=0, rates=PLAIN, round=7)
