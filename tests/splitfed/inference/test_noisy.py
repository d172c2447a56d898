"""The trade-off through noise: symbols counted, digits that fit into the capacity, and other layers refused."""

import csv
import io
import math
from pathlib import Path

import pytest
import torch
from helpers import DEEPER, small

from splitfed import simulate
from splitfed.cli.main import app
from splitfed.errors import SplitfedError
from splitfed.inference.rates import over_channel, rates
from splitfed.inference.run_model import RunModel
from splitfed.inference.tradeoff import measure_all, some_of
from splitfed.reports.tradeoff.noisy import Digital, Point, noisy
from splitfed.reports.tradeoff.noisy_picture import draw
from splitfed.reports.tradeoff.noisy_text import csv as to_csv
from splitfed.reports.tradeoff.noisy_text import notes, table
from splitfed.scenario import Scenario

DRAWN = "compression.reducer={kind: jscc, ratio: 0.25, drawn_ratio: [0.1, 0.5]}"
QUICK = (*DEEPER, "federation.rounds=1", "data.limit=100", "data.test_limit=30")
WIDTH, TOKENS, SIDE = 16, 5, 8


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that sends symbols."""
    return simulate(small(*QUICK, DRAWN), runs=tmp_path_factory.mktemp("noisy")).folder


@pytest.fixture(scope="module")
def points(sending: Path) -> list[Point]:
    return noisy(sending, [-20, 20, 60], [0.125, 0.5], split="test")[1]


def command(*arguments: str | Path) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False, prog_name="splitfed")


def test_every_ratio_is_measured_at_every_snr(points: list[Point]) -> None:
    assert [(p.ratio, p.snr) for p in points] == [(r, s) for r in (0.125, 0.5) for s in (-20, 20, 60)]
    for point in points:
        assert point.symbols == TOKENS * WIDTH * point.ratio
        assert point.per_value == point.symbols / (3 * SIDE**2)
        assert point.capacity == pytest.approx(point.symbols * math.log2(1 + 10 ** (point.snr / 10)) / 8)
        assert 0 <= point.accuracy <= 1


def test_digits_fit_into_what_the_channel_carries(points: list[Point]) -> None:
    for point in points:
        assert point.digital is None or point.digital.bytes <= point.capacity
    few, many = points[:3], points[3:]
    assert [one.digital is None for one in (few[0], many[0])] == [True, True]  # less than a byte, which a scale takes
    assert all(one.digital for one in (few[2], *many[1:]))
    assert many[1].digital.accuracy <= many[2].digital.accuracy  # what fits at 20 dB fits at 60


def test_noise_that_is_none_changes_no_answer(sending: Path, points: list[Point]) -> None:
    model = RunModel.read(sending)
    own = model.scenario.compression
    ways = over_channel(own, [60], [0.25])
    clear = rates(own, ["run"])
    found = measure_all(model, None, *some_of(model, "test", None), [*ways, *clear])
    run, at_60 = found.sent["run"][found.cut], found.sent["0.25 at 60 dB"][found.cut]
    assert float((run.right != at_60.right).float().mean()) <= 0.1
    assert torch.equal(run.right, found.whole)
    assert at_60.smashed.eq(TOKENS * 4 * 8).all()


def test_it_is_told_and_drawn(points: list[Point], sending: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(points))))
    assert [float(row["accuracy"]) for row in rows] == [point.accuracy for point in points]
    assert rows[0]["digital"] == ""
    assert table(points).row_count == 2
    draw([*points, Point(0.5, 70, 40, 0.2, 0.9, 100.0, Digital("0.5 in 8 bits", 40, 0.9))], tmp_path / "noise.png")
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
    found, _ = noisy(sending, [0], limit=3)
    assert notes(found)[0].startswith("3 images")


def test_the_command_writes_all_of_it(sending: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, to = tmp_path / "noise.png", tmp_path / "noise.csv"
    command("tradeoff", sending, "--snr", "-5,10", "--limit", "4", "--out", out, "--csv", to)
    said = capsys.readouterr().out
    assert "at 10 dB" in said
    assert out.exists()
    ratios = {row["ratio"] for row in csv.DictReader(to.open())}
    assert ratios == {"0.5", "0.25", "0.125"}  # the most, and its halves down to the least of drawn_ratio


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--snr", "0", "--ratio", "0.6"], "--ratio 0.6: the run's layers are for ratios above 0, up to 0.5"),
        (["--snr", "0", "--ratio", "nan"], "--ratio nan: the run's layers"),
        (["--snr", "loud"], "--snr loud: write numbers with commas"), (["--snr", ""], "--snr : write numbers"),
        (["--snr", "99"], "--snr 99: compression.reducer"), (["--ratio", "0.2"], "--ratio: goes with --snr"),
        (["--snr", "0", "--rate", "run"], "leave out --rate"), (["--snr", "0", "--rise", "0.1"], "leave out --rate"),
        (["--rate", "small"], "--rate small: none, with these keys, has not the layers"),
        (["--rate", "a={reducer: {kind: jscc, ratio: 0.6}}"], "--rate a: jscc, with these keys, has not the layers"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_line(sending: Path, arguments: list[str], why: str) -> None:
    with pytest.raises(SplitfedError) as error:
        command("tradeoff", sending, *arguments)
    assert str(error.value).startswith(why) or why in str(error.value)
    assert "\n" not in str(error.value)


def test_noise_is_asked_of_a_run_that_sends_symbols(finished: Path) -> None:
    with pytest.raises(SplitfedError, match=r"--snr: the run sends no symbols, for its compression\.reducer is none"):
        noisy(finished, [0])


def test_few_symbols_of_the_same_layers_are_a_rate(sending: Path) -> None:
    own = RunModel.read(sending).scenario.compression
    (few,) = rates(own, ["few={reducer: {kind: jscc, ratio: 0.125, snr: 3}}"])
    reducer = few.compression.reducer
    assert (reducer.ratio, reducer.drawn_ratio, reducer.snr, reducer.drawn_snr) == (0.125, None, 3, None)


@pytest.mark.parametrize("reducer", ["{kind: bottleneck, width: 4}", "{kind: jscc, ratio: 0.5}"])
def test_where_the_reducer_has_layers_the_usual_rates_keep_it(reducer: str) -> None:
    own = small(f"compression.reducer={reducer}").compression
    assert [rate.name for rate in rates(own)] == ["run", "8 bits", "3 bits"]
    assert all(rate.compression.reducer == own.reducer.settled() for rate in rates(own))


@pytest.mark.parametrize(
    ("trained", "asked", "serves"),
    [
        ("none", "{kind: discard_tokens, kept_tokens: 0.5}", True),
        ("{kind: bottleneck, width: 4}", "{kind: bottleneck, width: 4}", True),
        ("{kind: bottleneck, width: 4}", "{kind: bottleneck, width: 5}", False),
        ("{kind: bottleneck, width: 4}", "none", False), ("none", "{kind: bottleneck, width: 4}", False),
        ("{kind: jscc, ratio: 0.5}", "{kind: jscc, ratio: 0.2, snr: 5}", True),
        ("{kind: jscc, ratio: 0.2}", "{kind: jscc, ratio: 0.5}", False), ("{kind: jscc}", "none", False),
    ],
)  # fmt: skip
def test_layers_serve_where_they_were_trained(trained: str, asked: str, serves: bool) -> None:
    one, other = (small(f"compression.reducer={text}").compression.reducer for text in (trained, asked))
    assert other.serves(one) is serves


def test_the_scenario_that_ships_is_for_it() -> None:
    reducer = Scenario.load("digits-noisy").compression.reducer
    assert reducer.kind == "jscc"
    assert reducer.drawn_snr is not None
