"""A target of bytes a second holds in the long run, and what it allows is used."""

from pathlib import Path

import pytest
from PIL import Image

from splitfed import RemotePredictor
from splitfed.data.sources.base import open_digits
from splitfed.errors import RunError, SplitfedError
from splitfed.inference.remote.pacing import Pacing, bytes_a_second
from splitfed.inference.service.serve import Service

SIZES = {"best": 1000.0, "good": 400.0, "poor": 100.0}


def paced(target: float, alone: bool, *, guess: float = 1.0, batches: int = 400) -> tuple[float, dict[str | None, int]]:
    """Send a mini-batch of ten images a second, whose sizes were guessed, and return the mean bytes a second and how
    often each rate was chosen."""
    now, total, chosen = 0.0, 0.0, dict.fromkeys([*SIZES, None], 0)
    pacing = Pacing(target, {name: guess * size for name, size in SIZES.items()}, alone, clock=lambda: now)
    for _ in range(batches):
        rate = pacing.choose()
        chosen[rate] += 1
        sent = 10 * SIZES[rate] if rate else 0.0
        total += sent
        now += 1.0
        pacing.learn(rate, 10, round(sent))
    return total / batches, chosen


@pytest.mark.parametrize("guess", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("target", [500.0, 1500.0, 3000.0, 6000.0])
def test_what_is_sent_beyond_the_target_is_a_few_mini_batches(target: float, guess: float) -> None:
    """However long it goes on, so the mean comes to the target; and from below it is near, too."""
    for batches in (100, 1000):
        spent, _ = paced(target, True, guess=guess, batches=batches)
        assert (spent - target) * batches <= 4 * 10_000
    assert spent >= 0.9 * target


def test_where_there_is_room_the_best_is_sent() -> None:
    assert paced(20_000, True)[1] == {"best": 400, "good": 0, "poor": 0, None: 0}


def test_without_exits_the_smallest_is_the_least() -> None:
    spent, chosen = paced(500, False)
    assert chosen[None] == 0
    assert chosen["poor"] > 380
    assert spent < 1100


def test_a_target_is_read() -> None:
    assert bytes_a_second("20kB/s") == 20_000
    assert bytes_a_second("1.5 MiB / s") == 1.5 * 2**20
    for text in ("20kB", "20", "kB/s", "-1kB/s", "0B/s", "20kB/min", "20kB/s/s"):
        with pytest.raises(SplitfedError, match="such as 20kB/s"):
            bytes_a_second(text)


def test_a_client_under_a_target_sends_less(with_exits: Path, finished: Path, tmp_path: Path) -> None:
    source = open_digits()[0]
    digits: list[Image.Image] = [source.image(row) for row in range(40)]
    few = "few={reducer: none, smashed: {codec: {kind: uniform, bits: 2}}}"
    rates = ["plain={reducer: none, smashed: {codec: float32}}", few]
    with Service(with_exits, port=0, metrics_port=0, rates=rates, ledger=tmp_path / "ledger") as service:
        where, how = f"127.0.0.1:{service.port}", {"state": tmp_path / "state", "batch": 1}
        with RemotePredictor(where, target="1B/s", **how) as predictor:  # type: ignore[arg-type]
            found = predictor.predict(digits)
        assert {one.alone for one in found} == {None, "the target allows no more bytes"}
        assert {one.exit for one in found if one.alone} == {2}
        with RemotePredictor(where, target="1GB/s", **how) as predictor:  # type: ignore[arg-type]
            assert {one.alone for one in predictor.predict(digits)} == {None}
        with pytest.raises(RunError, match="name one of them"):
            RemotePredictor(where, target="1B/s", rate="few", **how)  # type: ignore[arg-type]
    with (
        Service(finished, port=0, metrics_port=0, rates=rates[:1], ledger=tmp_path / "ledger") as service,
        pytest.raises(RunError, match="nothing to choose"),
    ):
        RemotePredictor(f"127.0.0.1:{service.port}", target="1B/s", **how)  # type: ignore[arg-type]
