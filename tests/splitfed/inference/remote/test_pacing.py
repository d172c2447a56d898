"""A target of bytes a second, or of seconds, holds in the long run, and what it allows is used."""

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from splitfed import RemotePredictor
from splitfed.cli import main as cli
from splitfed.data.sources.base import open_digits
from splitfed.errors import RunError, SplitfedError
from splitfed.federation.control.account import RateAccount, RoundAccount, Spent
from splitfed.inference.remote.pacing import Pacing, account_of
from splitfed.inference.service.serve import Service

SIZES = {"best": 1000.0, "good": 400.0, "poor": 100.0}


def paced(target: float, alone: bool, *, guess: float = 1.0, batches: int = 400) -> tuple[float, dict[str | None, int]]:
    """Send a mini-batch of ten images a second, whose sizes were guessed, and return the mean bytes a second and how
    often each rate was chosen."""
    now, total, chosen = 0.0, 0.0, dict.fromkeys([*SIZES, None], 0)
    pacing = Pacing(RateAccount(target), {name: guess * size for name, size in SIZES.items()}, alone, clock=lambda: now)
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


@pytest.mark.parametrize(("target", "used"), [(0.02, 0.7), (0.1, 0.9), (0.3, 0.6), (2.0, 0.15)])
def test_seconds_of_an_answer_hold_while_the_line_changes(target: float, used: float) -> None:
    """A mini-batch takes 20 ms and its bytes' time, at 100 kB/s and at a fifth of that by turns of a hundred."""
    pacing, total = Pacing(RoundAccount(target), SIZES, alone=True), 0.0
    for number in range(1000):
        rate = pacing.choose()
        sent = 10 * SIZES[rate] if rate else 0.0
        seconds = 0.02 + sent / (20_000 if number // 100 % 2 else 100_000) if rate else 0.0
        total += seconds
        pacing.learn(rate, 10, round(sent), seconds)
    assert used * target <= total / 1000 <= 1.1 * target


def test_a_target_is_read() -> None:
    for text, kind in {
        "20kB/s": RateAccount,
        "1.5 MiB / s": RateAccount,
        "200ms": RoundAccount,
        "2 s": RoundAccount,
    }.items():
        assert type(account_of(text)) is kind
    rate = account_of("1.5 MiB / s")
    for round in (1, 2):
        rate.close({0: Spent(3 * 2**20)}, round, 2.0)  # two seconds of it, and as much again in no time
    assert rate.queue(0) == pytest.approx(1)
    seconds = account_of("200ms")
    seconds.close({0: Spent(1, 0.5)}, 1, 0.0)
    assert seconds.queue(0) == pytest.approx(1.5)
    for text in ("20kB", "20", "kB/s", "-1kB/s", "0B/s", "20kB/min", "20kB/s/s", "0ms", "-1s", "ms", "nan"):
        with pytest.raises(SplitfedError, match="such as 20kB/s, or a mini-batch's time"):
            account_of(text)


def test_a_client_under_a_target_sends_less(with_exits: Path, finished: Path, tmp_path: Path) -> None:
    source = open_digits()[0]
    digits: list[Image.Image] = [source.image(row) for row in range(40)]
    few = "few={reducer: none, smashed: {codec: {kind: uniform, bits: 2}}}"
    rates = ["plain={reducer: none, smashed: {codec: float32}}", few]
    with Service(with_exits, port=0, metrics_port=0, rates=rates, ledger=tmp_path / "ledger") as service:
        where, how = f"127.0.0.1:{service.port}", {"state": tmp_path / "state", "batch": 1}
        for little in ("1B/s", "1us"):
            with RemotePredictor(where, target=little, **how) as predictor:  # type: ignore[arg-type]
                found = predictor.predict(digits)
            assert {one.alone for one in found} == {None, "the target allows no more"}
            assert predictor.held is False
            assert {one.exit for one in found if one.alone} == {2}
        for much in ("1GB/s", "5min"):
            with RemotePredictor(where, target=much, **how) as predictor:  # type: ignore[arg-type]
                assert predictor.held is predictor.spent is None
                assert {one.alone for one in predictor.predict(digits)} == {None}
                assert predictor.held is True
        with pytest.raises(RunError, match="name one of them"):
            RemotePredictor(where, target="1B/s", rate="few", **how)  # type: ignore[arg-type]
    with (
        Service(finished, port=0, metrics_port=0, rates=rates[:1], ledger=tmp_path / "ledger") as service,
        pytest.raises(RunError, match="nothing to choose"),
    ):
        RemotePredictor(f"127.0.0.1:{service.port}", target="1B/s", **how)  # type: ignore[arg-type]


def test_a_target_that_is_not_kept_without_exits_is_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = open_digits()[0]
    for row in range(4):
        source.image(row).save(tmp_path / f"{row}.png")
    few = "few={reducer: none, smashed: {codec: {kind: uniform, bits: 2}}}"
    rates = ["plain={reducer: none, smashed: {codec: float32}}", few]
    with Service(finished, port=0, metrics_port=0, rates=rates, ledger=tmp_path / "ledger") as service:
        words = ["predict", f"127.0.0.1:{service.port}", tmp_path, "--batch", 1, "--state", tmp_path / "state"]
        for target, unit in ("1B/s", r"[kM]?B/s"), ("1us", "s a mini-batch"), ("1GB/s", None), ("5min", None):
            monkeypatch.setattr("sys.argv", ["splitfed", *map(str, [*words, "--target", target])])
            with pytest.raises(SystemExit) as end:
                cli.main()
            told = capsys.readouterr()
            assert (end.value.code, len(told.out.splitlines())) == (0, 4)
            why = "as without exits every image is sent, whatever the target"
            said = rf"--target {target}: it was [\d.e-]+ {unit} in the mean, {why}\n"
            assert re.fullmatch(said if unit else "", told.err), told.err
        with RemotePredictor(f"127.0.0.1:{service.port}", target="1B/s", batch=1, state=tmp_path / "state") as one:
            begun, before = time.monotonic(), sum(one.bytes.values())
            one.predict(tmp_path)
            # Bytes over time: no more than all that crossed, and the time is less than that of this test.
            assert one.spent is not None
            assert 0.5 * (sum(one.bytes.values()) - before) / (time.monotonic() - begun) < one.spent
