"""The trade-off: its ends are known, its bytes are those of frames, and what is unsure is what is worth sending."""

import csv
import io
from pathlib import Path

import pytest
import torch
from helpers import DEEPER, small

from splitfed import simulate
from splitfed.errors import RunError, SplitfedError
from splitfed.inference.deciding import Rule
from splitfed.inference.exits import load
from splitfed.inference.fitting import fit
from splitfed.inference.rates import rates
from splitfed.inference.run_model import RunModel
from splitfed.inference.tradeoff import Measured, measure_all, point, tradeoff
from splitfed.reports.tradeoff.picture import draw
from splitfed.reports.tradeoff.text import csv as to_csv
from splitfed.reports.tradeoff.text import notes, table, within
from splitfed.run.origin import load_data

PLAIN = "plain={reducer: none, smashed: {codec: float32, lossless: none}}"
TOKENS = "few tokens={reducer: {kind: discard_tokens, kept_tokens: 0.6}, smashed: {codec: float32, lossless: none}}"
TWO = [PLAIN, TOKENS]
LEARNS = (
    "training.client.optimiser.lr=4e-3", "training.server.optimiser.lr=4e-3", "training.batch_size=32",
    "data.limit=900", "data.test_limit=300", "federation.rounds=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(with_exits: Path) -> Measured:
    model = RunModel.read(with_exits)
    images = load_data(model.scenario).test
    exits, _, _ = load(model)
    found = rates(model.scenario.compression, TWO)
    return measure_all(model, exits, images, torch.arange(len(images)), found, early=True)


def test_the_ends_are_the_first_exit_and_the_whole_model(measured: Measured) -> None:
    nothing, all_ = (point(measured, "plain", Rule(threshold)) for threshold in (0, 1.01))
    assert (nothing.share, nothing.bytes, nothing.server) == (0, 0, 0)
    assert nothing.accuracy == pytest.approx(float(measured.right[0].float().mean()))
    assert all_.share == 1
    assert all_.accuracy == pytest.approx(float(measured.whole.float().mean()))  # nothing is lost in float32
    assert all_.accuracy == pytest.approx(all_.at_random)
    assert measured.blocks == (1, 2)  # the third block is the server's
    assert all_.client == measured.operations[2]
    assert all_.client + all_.server == pytest.approx(measured.all_operations)
    assert nothing.client == measured.operations[1] < all_.client


def test_bytes_are_as_many_as_were_sent_times_what_one_takes(measured: Measured) -> None:
    for rate, tokens in (("plain", 5), ("few tokens", 3)):
        sent = measured.sent[rate][2]
        assert len(set(sent.up.tolist())) <= 3  # alike but for the digits of their number
        payload = 4 * 16 * tokens
        assert all(payload < size < payload + 200 for size in sent.up.tolist())
        for threshold in (0.3, 0.6, 0.9):
            found = point(measured, rate, Rule(threshold))
            gone = (measured.answers.amax(2) < threshold).all(0)
            assert found.share == pytest.approx(float(gone.float().mean()))
            assert found.bytes * len(measured) == pytest.approx(int((sent.up + sent.down)[gone].sum()))


def test_an_early_send_leaves_after_its_exit(measured: Measured) -> None:
    """With a rise that nobody reaches all that the first exit does not answer leaves after the second, which is the
    cut; with none that counts there is only the first to leave from."""
    by_hand = point(measured, "plain", Rule(0.6))
    assert point(measured, "plain", Rule(0.6, rise=-1.0)) == by_hand
    hasty = point(measured, "plain", Rule(0.6, rise=2.0))
    assert hasty.share == by_hand.share  # the last exit of the front is the last chance of both


def test_sending_what_is_unsure_beats_sending_at_random(with_exits: Path) -> None:
    _, curves = tradeoff(with_exits, split="test", rates=[PLAIN])
    points = [one for one in curves["plain"] if 0.1 <= one.share <= 0.9]
    assert len(points) > 20
    assert sum(one.accuracy - one.at_random for one in points) / len(points) > 0.02


def test_without_exits_all_is_sent(finished: Path) -> None:
    found, curves = tradeoff(finished, limit=20)
    assert len(found) == 20
    assert set(curves) == {"run", "8 bits", "3 bits", "3 bits, half the tokens"}
    assert all([one.share for one in points] == [1.0] for points in curves.values())


def test_it_is_told_and_drawn(measured: Measured, with_exits: Path, tmp_path: Path) -> None:
    found, curves = tradeoff(with_exits, rates=TWO)
    rows = list(csv.DictReader(io.StringIO(to_csv(curves))))
    assert {row["rate"] for row in rows} == {"plain", "few tokens"}
    assert len(rows) == sum(map(len, curves.values()))
    assert table(found, curves).row_count == 2
    assert any("the whole model" in line for line in notes(found))
    for share in (0.0, 0.5, 1.0):
        assert within(curves["plain"], share).share <= share
    draw(found, curves, tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rate", "why"),
    [
        ("8bits", "write run, medium"), ("a={reducer", "is no YAML"), ("a={tokens: 3}", "takes the keys"),
        ("a={reducer: {kind: discard_tokens, kept_tokens: 2}}", "kept_tokens"), ("a=3", "takes the keys"),
        ("z={reducer: {kind: semantic_tokens, budget: 0}}",
         r"^--rate z: compression\.reducer\.budget: must be greater than 0, not 0$"),
        ("z={reducer: nune}", r"^--rate z: compression\.reducer: unknown kind 'nune', .* did you mean 'none'\?$"),
        ("z={smashed: {codek: float16}}", r"^--rate z: compression\.smashed\.codek: unknown key, did you mean 'codec'"),
    ],
)  # fmt: skip
def test_rates_that_are_none_are_refused_in_a_line(finished: Path, rate: str, why: str) -> None:
    with pytest.raises(SplitfedError, match=why) as error:
        rates(RunModel.read(finished).scenario.compression, [rate])
    assert "\n" not in str(error.value)


def test_two_rates_of_one_name_are_refused(finished: Path) -> None:
    with pytest.raises(SplitfedError, match="same name"):
        rates(RunModel.read(finished).scenario.compression, ["small", "small"])


@pytest.mark.slow
def test_over_seeds_it_does_so_at_every_share(tmp_path: Path) -> None:
    """In the mean of three seeds, and where nothing or all is sent it comes to the same."""
    gains: dict[int, list[float]] = {tenth: [] for tenth in range(11)}
    for seed in range(3):
        run = simulate(small(*DEEPER, *LEARNS, f"seed={seed}"), runs=tmp_path / str(seed)).folder
        fit(run, [2], epochs=4)
        _, curves = tradeoff(run, split="test", rates=[PLAIN])
        for tenth, found in gains.items():
            one = min(curves["plain"], key=lambda point: abs(point.share - tenth / 10))
            assert one.share == pytest.approx(tenth / 10, abs=0.03)
            found.append(one.accuracy - one.at_random)
    assert all(sum(found) > 0 for tenth, found in gains.items() if 0 < tenth < 10), gains
    assert sum(gains[0]) == pytest.approx(0, abs=1e-6)
    assert sum(gains[10]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("how", [{"rise": 0.1}, {"measure": "entropy"}])
def test_a_confidence_where_no_exits_are_is_refused(finished: Path, how: dict) -> None:
    with pytest.raises(RunError, match="no exits are there to be confident"):
        tradeoff(finished, **how)
