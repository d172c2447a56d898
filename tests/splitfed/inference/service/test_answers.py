"""A service and its clients, each with the other's word: the answers are the whole model's, and the bytes those of
frames."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers import DEEPER, small
from PIL import Image

from splitfed import Prediction, Predictor, RemotePredictor, simulate
from splitfed.data.sources.base import open_digits
from splitfed.errors import RunError, SplitfedError
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.serve import Service
from splitfed.inference.service.tally import Place

PLAIN = "plain={reducer: none, smashed: {codec: float32, lossless: none}}"
TOKENS = "tokens={reducer: {kind: discard_tokens, kept_tokens: 0.6}, smashed: {codec: float32, lossless: none}}"


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    source = open_digits()[0]
    return [source.image(row) for row in range(23)]


@pytest.fixture(scope="module")
def plain(with_exits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that computes each request alone."""
    ledger = tmp_path_factory.mktemp("ledger")
    with Service(with_exits, port=0, metrics_port=0, rates=[PLAIN, TOKENS], batch=1, ledger=ledger) as service:
        yield service


def asking(service: Service, state: Path, **how) -> RemotePredictor:
    return RemotePredictor(f"127.0.0.1:{service.port}", state=state, **how)


def alike(found: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    """Check that two are the same, but for how the sums were ordered."""
    for one, other in zip(found, expected, strict=True):
        assert (one.image, one.label, one.exit, one.problem, one.alone) == (
            other.image, other.label, other.exit, other.problem, other.alone,
        )  # fmt: skip
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_above_one_it_is_the_whole_model_to_the_last_bit(
    plain: Service, with_exits: Path, digits: list, tmp_path: Path, batch: int
) -> None:  # fmt: skip
    with asking(plain, tmp_path, confidence=1.01, batch=batch, top=10) as predictor:
        assert predictor.predict(digits) == Predictor(with_exits, batch=batch, top=10).predict(digits)


def test_at_zero_nothing_is_sent(plain: Service, with_exits: Path, digits: list, tmp_path: Path) -> None:
    with asking(plain, tmp_path, confidence=0, top=10) as predictor:
        assert predictor.predict(digits) == Predictor(with_exits, confidence=0, top=10).predict(digits)
        assert set(predictor.bytes) == {("down", "front")}


def middle(run: Path, digits: list) -> float:
    """A confidence that about half of the images have at one of the front's exits."""
    sure = sorted(one.confidence or 0 for one in Predictor(run, confidence=0).predict(digits))
    return sure[len(sure) // 2]


def test_between_who_is_sure_answers(plain: Service, with_exits: Path, digits: list, tmp_path: Path) -> None:
    threshold = middle(with_exits, digits)
    with asking(plain, tmp_path, confidence=threshold, top=10) as predictor:
        found = predictor.predict(digits)
    alike(found, Predictor(with_exits, confidence=threshold, top=10).predict(digits))
    assert {one.exit for one in found} >= {1, 3}  # the third is the server's


def test_who_hardly_rises_is_sent_from_where_it_was_given_up(with_exits: Path, digits: list, tmp_path: Path) -> None:
    """With three blocks before the cut, after the second: nobody rises by so much."""
    threshold, later = middle(with_exits, digits), ["model.cut=3"]
    expected = Predictor(with_exits, confidence=threshold, rise=2.0, top=10, overrides=later).predict(digits)
    with (
        Service(
            with_exits, port=0, metrics_port=0, rates=[PLAIN], overrides=later, ledger=tmp_path / "ledger"
        ) as service,
        asking(service, tmp_path, confidence=threshold, rise=2.0, top=10) as predictor,
    ):
        alike(predictor.predict(digits), expected)
        sent = sum(one.exit is None for one in expected)
        assert sent > 0
        assert f'splitfed_images_total{{block="2"}} {sent}\n' in service.metrics.text()


def test_an_accuracy_stands_for_a_confidence(plain: Service, with_exits: Path, tmp_path: Path) -> None:
    with asking(plain, tmp_path, accuracy=0.3) as predictor:
        assert 0 <= predictor.rule.threshold <= 1
    with pytest.raises(RunError, match="no threshold reaches it"):
        asking(plain, tmp_path, accuracy=1.0)


@pytest.mark.parametrize("rate", ["plain", "tokens"])
@pytest.mark.parametrize("batch", [1, 7])
def test_both_ends_count_the_same_bytes(
    plain: Service, with_exits: Path, digits: list, tmp_path: Path, rate: str, batch: int
) -> None:  # fmt: skip
    """And tensors take exactly what their numbers do."""
    before = plain.tally.sums()
    with asking(plain, tmp_path, batch=batch, rate=rate, client=5) as predictor:
        predictor.predict(digits)
        crossed = predictor.bytes
    after = {place: sent - before.get(place, (0, 0))[1] for place, (_, sent) in plain.tally.sums().items()}
    here: dict[Place, int] = {(5, direction, role): sent for (direction, role), sent in crossed.items()}
    assert {place: sent for place, sent in after.items() if place[0] == 5} == here
    trunk = RunModel.read(with_exits).trunk
    kept = trunk.front.geometry(1, 10).tokens if rate == "plain" else 3
    assert crossed["up", "smashed"] == 4 * trunk.width * kept * len(digits)
    assert crossed["down", "answer"] == 4 * 10 * len(digits)


def test_many_at_once_are_answered_as_one_is(with_exits: Path, digits: list, tmp_path: Path) -> None:
    """Requests of several clients are computed together, and each has its own answer."""
    expected = Predictor(with_exits, top=10, batch=1).predict(digits)
    found: dict[int, list[Prediction]] = {}
    with Service(with_exits, port=0, metrics_port=0, rates=[PLAIN], wait=0.02, ledger=tmp_path / "ledger") as service:

        def ask(client: int) -> None:
            with asking(service, tmp_path / str(client), top=10, batch=1 + client, client=client) as predictor:
                found[client] = predictor.predict(digits)

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = service.metrics.text()
    for client in range(4):
        alike(found[client], expected)
    requests = sum(-(-len(digits) // (1 + client)) for client in range(4))
    assert f'splitfed_requests_total{{outcome="answered"}} {requests}\n' in text
    batches = int(text.partition("splitfed_batch_requests_count ")[2].split()[0])
    assert batches < requests


@pytest.mark.parametrize("more", [
    ["federation.labels=private"], ["compression.reducer={kind: bottleneck, width: 4}"],
    ["federation.mode=fl", "training.server={}"], ["compression.reducer=semantic_tokens"],
])  # fmt: skip
def test_other_kinds_of_runs(more: list[str], digits: list, tmp_path: Path) -> None:
    """Private labels: the tail stays with the client. A reducer's own layers: each end has its half."""
    run = simulate(small(*DEEPER, *more, "federation.rounds=1", "data.limit=48"), runs=tmp_path).folder
    expected = Predictor(run, batch=1, top=10).predict(digits)
    with Service(run, port=0, metrics_port=0, batch=1) as service, asking(service, tmp_path, top=10) as predictor:
        alike(predictor.predict(digits), expected)


def test_what_merges_samples_is_refused_and_other_rates_are_not(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    scenario = (run / "scenario.yaml").read_text()
    changed = small(*DEEPER, "compression.reducer={kind: adc, ratio: 0.5}").to_yaml()
    (run / "scenario.yaml").write_text(changed)
    assert scenario != changed
    with pytest.raises(RunError, match=r"adc merges samples.*--rate"):
        Service(run, port=0, metrics_port=0)
    with pytest.raises(SplitfedError, match="merges samples"):
        Service(run, port=0, metrics_port=0, rates=["run"])
    Service(run, port=0, metrics_port=0, rates=[PLAIN])


def test_a_server_of_plain_text_must_be_wanted(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="without --tls"):
        Service(finished, host="0.0.0.0", port=0, metrics_port=0)
    with pytest.raises(RunError, match="without --tls"):
        RemotePredictor("gpu.example.org", state=tmp_path)


def test_images_that_are_none_harm_no_other(plain: Service, digits: list, tmp_path: Path) -> None:
    digits[0].save(tmp_path / "good.png")
    digits[0].convert("CMYK").save(tmp_path / "inks.tiff")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with asking(plain, tmp_path / "state") as predictor:
        found = {Path(one.image).name: one for one in predictor.predict(tmp_path)}
    assert found["broken.png"].problem
    assert found["good.png"].label == found["inks.tiff"].label is not None


def test_numbers_that_no_front_makes_are_refused_and_the_stream_goes_on(
    plain: Service, digits: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with asking(plain, tmp_path, batch=1) as predictor, monkeypatch.context() as changed:
        changed.setattr("splitfed.inference.asking.check_bounds", lambda what, *_: None if what[0] == "a" else 1 / 0)
        assert "an error in the server" in (predictor.predict(digits[:1])[0].problem or "")
        changed.undo()
        assert predictor.predict(digits[:1])[0].label is not None


def test_torch_needs_no_gradient_of_it(plain: Service, digits: list, tmp_path: Path) -> None:
    with asking(plain, tmp_path) as predictor, torch.enable_grad():
        assert predictor.predict(digits[:2])[1].label is not None
