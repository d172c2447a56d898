"""Exits behind the cut: what a server answers by them is what the run answers by them on one machine, and no later
block is computed for it."""

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import DEEPER, small
from PIL import Image

from splitfed import Prediction, Predictor, RemotePredictor, simulate
from splitfed.cli import main as cli
from splitfed.data.sources.base import open_digits
from splitfed.engines.deployment.processes import free_port
from splitfed.inference.asking import Asked
from splitfed.inference.deciding import MEASURES, Measure, Rule, confidence
from splitfed.inference.exits import load
from splitfed.inference.fitting import fit
from splitfed.inference.remote.bundle import read_bundle
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.adaptation.norms import apart
from splitfed.inference.service.backs import Backs
from splitfed.inference.service.serve import Service, serve_model
from splitfed.model.exits.heads import Exits
from splitfed.seeds import Key

PLAIN = ["plain={reducer: none, smashed: {codec: float32}}"]
CUTS = {1: ["model.cut=1"], 2: []}  # of exits after blocks 1, 2 and 3, two or one are the server's

Serve = Callable[..., Service]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Serves runs, each request computed alone, until all tests are done."""
    made: dict[tuple, Service] = {}

    def one(run: Path, cut: int = 2) -> Service:
        if (run, cut) not in made:
            ledger = tmp_path_factory.mktemp("ledger")
            made[run, cut] = Service(
                run, port=0, metrics_port=0, rates=PLAIN, batch=1, ledger=ledger, overrides=CUTS[cut]
            )
            made[run, cut].__enter__()
        return made[run, cut]

    yield one
    for service in made.values():
        service.__exit__()


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    source = open_digits()[0]
    return [source.image(row) for row in range(40)]


def levels(run: Path, measure: Measure = "probability", shares: Sequence[float] = (0.3, 0.5, 0.7, 0.9)) -> list[float]:
    """Confidences which these shares of what a run's exits say do not reach."""
    sure = load(RunModel.read(run))[2].confidences[MEASURES.index(measure)]
    return torch.quantile(sure.flatten(), torch.tensor(shares)).tolist()


def with_all(run: Path, digits: list, exits: set, cut: int = 2) -> float:
    """A confidence with which each of these exits answers some images."""
    for sure in levels(run, shares=torch.arange(0.05, 1, 0.05).tolist()):
        if {one.exit for one in local(run, digits, cut, confidence=sure)} >= exits:
            return sure
    raise AssertionError("there is none")


def remote(service: Service, state: Path, images: Sequence[Image.Image], **how) -> list[Prediction]:
    with RemotePredictor(f"127.0.0.1:{service.port}", state=state, batch=1, top=10, **how) as predictor:
        return predictor.predict(list(images))


def local(run: Path, images: Sequence[Image.Image], cut: int = 2, **how) -> list[Prediction]:
    return Predictor(run, batch=1, top=10, overrides=CUTS[cut], **how).predict(list(images))


@pytest.mark.parametrize("measure", ["probability", "margin", "entropy"])
@pytest.mark.parametrize("cut", [1, 2])
def test_it_is_what_the_run_answers_to_the_last_bit(
    serve: Serve, with_exits: Path, digits: list, tmp_path: Path, cut: int, measure: Measure
) -> None:  # fmt: skip
    seen: set[int | None] = set()
    for sure in levels(with_exits, measure):
        found = remote(serve(with_exits, cut), tmp_path, digits, confidence=sure, measure=measure)
        assert found == local(with_exits, digits, cut, confidence=sure, measure=measure)
        seen |= {one.exit for one in found}
    assert seen >= {1, 3, None}


def test_so_it_is_where_confidences_have_to_rise(
    serve: Serve, with_exits: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    """From the last exit of the client to the first of the server, too."""
    changed = False
    for sure in levels(with_exits):
        for rise in (0.02, 0.1, 0.3):
            found = remote(serve(with_exits, 1), tmp_path, digits, confidence=sure, rise=rise)
            assert found == local(with_exits, digits, 1, confidence=sure, rise=rise)
            changed |= found != local(with_exits, digits, 1, confidence=sure)
    assert changed


@pytest.mark.parametrize("blocks", [[3], [2, 3]])
def test_a_client_needs_no_exit_of_its_own(
    serve: Serve, copied: Path, digits: list, tmp_path: Path, blocks: list[int]
) -> None:  # fmt: skip
    """And all of an ensemble, or of a cascade, may be behind the cut."""
    fit(copied, blocks, epochs=2, heads="cascade", ensemble=True)
    seen: set[int | None] = set()
    for sure in levels(copied):
        for rise in (None, 0.1):
            found = remote(serve(copied, 1), tmp_path, digits, confidence=sure, rise=rise)
            assert found == local(copied, digits, 1, confidence=sure, rise=rise)
            seen |= {one.exit for one in found}
    assert seen == {*blocks, None}


def test_thresholds_follow_from_the_exits_of_both(
    serve: Serve, with_exits: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    for how in ({"accuracy": 0.3}, {"accuracy": 0.45}, {"most_bytes": 300}, {"most_operations": 9e4}):
        here = Predictor(with_exits, **how)  # type: ignore[arg-type]
        with RemotePredictor(f"127.0.0.1:{serve(with_exits).port}", state=tmp_path, **how) as predictor:  # type: ignore[arg-type]
            assert predictor.rule == here.rule
        assert remote(serve(with_exits), tmp_path, digits, **how) == local(with_exits, digits, **how)


@pytest.mark.parametrize("how", [{}, {"confidence": 1.01}])
def test_who_asks_no_exit_sends_and_hears_what_he_would_without(
    serve: Serve, with_exits: Path, finished: Path, digits: list, tmp_path: Path, how: dict
) -> None:  # fmt: skip
    """All bytes but those of the front."""
    crossed = []
    for run, said in ((with_exits, how), (finished, {})):
        with RemotePredictor(f"127.0.0.1:{serve(run).port}", state=tmp_path, batch=4, **said) as predictor:
            predictor.predict(digits)
            crossed.append({role: sent for role, sent in predictor.bytes.items() if role != ("down", "front")})
    assert crossed[0] == crossed[1]
    assert remote(serve(with_exits), tmp_path, digits, **how) == local(finished, digits)


def test_later_blocks_are_not_computed_and_counts_say_who_answered(
    with_exits: Path, digits: list, tmp_path: Path
) -> None:  # fmt: skip
    sure = with_all(with_exits, digits, {1, 2, 3, None}, 1)
    expected = Counter(one.exit for one in local(with_exits, digits, 1, confidence=sure))
    rows: Counter[int] = Counter()
    with Service(
        with_exits, port=0, metrics_port=0, rates=PLAIN, ledger=tmp_path / "ledger", overrides=CUTS[1]
    ) as service:
        back = service.backs.now.model.parts.back
        for place, block in enumerate(back.blocks, 2):
            block.register_forward_hook(lambda _, given, made, place=place: rows.update({place: len(made)}))
        with RemotePredictor(f"127.0.0.1:{service.port}", state=tmp_path, confidence=sure) as predictor:
            found = predictor.predict(digits)
        text = service.metrics.text()
    assert Counter(one.exit for one in found) == expected
    sent = len(digits) - expected[1]
    assert rows == {2: sent, 3: sent - expected[2], 4: expected[None]}
    assert f'splitfed_images_total{{block="1"}} {sent}\n' in text
    for exit, images in ((2, expected[2]), (3, expected[3]), ("model", expected[None])):
        assert f'splitfed_answers_total{{exit="{exit}"}} {images}\n' in text


def test_the_command_says_which_exit_answered(
    serve: Serve, with_exits: Path, digits: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    sure = with_all(with_exits, digits, {3})
    found = local(with_exits, digits, confidence=sure)
    row = [one.exit for one in found].index(3)
    digits[row].save(tmp_path / "one.png")
    for more in ((), ("--json",)):
        words = ("predict", f"127.0.0.1:{serve(with_exits).port}", tmp_path / "one.png", "--confidence", sure)
        monkeypatch.setattr("sys.argv", ["splitfed", *map(str, words), "--state", str(tmp_path), *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    line, said = capsys.readouterr().out.splitlines()
    assert line.endswith("(exit after block 3)")
    assert (json.loads(said)["exit"], json.loads(said)["confidence"]) == (3, found[row].confidence)


def test_the_service_says_which_exits_answer_there(with_exits: Path, finished: Path, tmp_path: Path) -> None:
    for run, expected in (
        (with_exits, ["exits       here after block 2, 3, for who asks with a confidence"]),
        (finished, []),
    ):
        said: list[str] = []

        def say(line: str, said: list[str] = said) -> None:
            said.append(line)
            if line.startswith("bytes in"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            serve_model(
                run, port=free_port(), metrics_port=free_port(), say=say, ledger=tmp_path / run.parent.name,
                overrides=CUTS[1],
            )  # fmt: skip
        assert [line for line in said if line.startswith("exits")] == expected


@pytest.mark.parametrize("how", [{"heads": "cascade"}, {"ensemble": True}])
def test_what_spans_the_cut_is_the_clients_alone_and_the_server_says_why(
    copied: Path, digits: list, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: dict
) -> None:  # fmt: skip
    fit(copied, [1, 2, 3], epochs=1, **how)
    sure = with_all(copied, digits, {1, 3})
    with caplog.at_level(logging.WARNING), Service(copied, port=0, metrics_port=0, rates=PLAIN, batch=1) as service:
        found = remote(service, tmp_path, digits, confidence=sure)
    assert "exits behind the cut take no part: in a" in caplog.text
    assert "no logits cross" in caplog.text
    expected = local(copied, digits, confidence=sure)
    whole = local(copied, digits)
    assert found == [one if one.exit in (1, 2) else other for one, other in zip(expected, whole, strict=True)]


def test_with_private_labels_they_are_the_clients_alone(
    digits: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    changes = (*DEEPER, "federation.labels=private", "federation.rounds=1", "data.limit=96")
    run = simulate(small(*changes), runs=tmp_path).folder
    fit(run, [1, 3], epochs=1)
    sure = with_all(run, digits, {1, 3})
    with caplog.at_level(logging.WARNING), Service(run, port=0, metrics_port=0, rates=PLAIN, batch=1) as service:
        found = remote(service, tmp_path / "state", digits, confidence=sure)
    assert "labels are private" in caplog.text
    expected, whole = local(run, digits, confidence=sure), local(run, digits)
    assert found == [one if one.exit == 1 else other for one, other in zip(expected, whole, strict=True)]


def test_exits_belong_to_the_back_of_the_front_that_is_asked_with(digits: list, tmp_path: Path) -> None:
    """Also while another checkpoint is served."""
    sizes = ("data.limit=300", "data.test_limit=50", "federation.rounds=2", "checkpoints.keep=2")
    run = simulate(small(*DEEPER, *sizes, "model.exits={blocks: [1, 2, 3]}"), runs=tmp_path).folder
    later = run / "checkpoints" / "round-000002"
    later.rename(tmp_path / "later")
    how = {"confidence": 0.15, "batch": 1, "top": 10}
    expected = {}
    with Service(run, port=0, metrics_port=0, rates=PLAIN, batch=1, keep_old=600) as service:
        where = f"127.0.0.1:{service.port}"
        with RemotePredictor(where, state=tmp_path / "state", **how) as before:  # type: ignore[arg-type]
            (tmp_path / "later").rename(later)
            service.reload()
            with RemotePredictor(where, state=tmp_path / "state", **how) as after:  # type: ignore[arg-type]
                for round, predictor in ((1, before), (2, after)):
                    expected[round] = Predictor(run, round=round, **how).predict(digits)  # type: ignore[arg-type]
                    assert predictor.predict(digits) == expected[round]
                    assert 3 in {one.exit for one in expected[round]}
    assert expected[1] != expected[2]


def by_hand(model: RunModel, exits: Exits, tokens: torch.Tensor, sure: float) -> list[tuple[torch.Tensor, int | None]]:
    """What follows the cut says of images, one by one: the logits, and the exit that said so."""
    found = []
    for row in range(len(tokens)):
        one = tokens[row : row + 1]
        for block, module in enumerate(model.parts.back.blocks, 3):
            one = module(one)
            if block == 3:
                logits = exits.outputs["3"](exits.look(one))
                if float(confidence(logits.softmax(1), "probability")) >= sure:
                    found.append((logits[0], 3))
                    break
        else:
            found.append((model.parts.back.forward_head(model.parts.back.norm(one))[0], None))
    return found


def test_they_see_what_adapted_norms_make(with_exits: Path) -> None:
    backs = Backs(with_exits, named=PLAIN)
    parts, norms = apart(backs.base.model.parts, "back")
    tokens = torch.randn(9, 5, 16, generator=Key(0).generator())
    with torch.no_grad():
        for place, norm in enumerate(norms.values()):
            norm += 0.3 * torch.randn(norm.shape, generator=Key(place).generator())
        changed = backs.adapted(backs.base, parts, b"")
        exits = changed.exits
        assert exits is not None
        sure = float(exits.outputs["3"](exits.look(parts.back.blocks[0](tokens))).softmax(1).amax(1).median())
        expected = by_hand(changed.model, exits, tokens, sure)
    asked = Asked(1, 2, "", tokens, rule=Rule(sure))
    asking = changed.asking["plain"]
    heard = asking.unpack_answer(asking.answer(asked).buffer, 1, 9, (3,))
    assert list(heard.exits) == [exit for _, exit in expected]
    assert set(heard.exits) == {3, None}
    assert torch.allclose(heard.logits, torch.stack([logits for logits, _ in expected]), atol=1e-5)
    before = backs.base.asking["plain"]
    assert not torch.allclose(
        before.unpack_answer(before.answer(asked).buffer, 1, 9, (3,)).logits, heard.logits, atol=1e-2
    )


def test_a_reader_of_before_finds_what_it_knows(serve: Serve, with_exits: Path, digits: list, tmp_path: Path) -> None:
    """Who does not know of them asks none, and is answered by the whole model behind the cut."""
    sure = with_all(with_exits, digits, {1, 3})
    with (
        pytest.MonkeyPatch.context() as before,
        RemotePredictor(f"127.0.0.1:{serve(with_exits).port}", state=tmp_path, confidence=sure, batch=1) as predictor,
    ):
        before.setattr(
            "splitfed.inference.remote.predictor.read_bundle", lambda *how: replace(read_bundle(*how), behind=())
        )
        found = remote(serve(with_exits), tmp_path / "other", digits, confidence=sure)
        now = predictor.predict(digits)
    expected = local(with_exits, digits, confidence=sure)
    whole = local(with_exits, digits)
    assert [one.exit for one in now] == [one.exit for one in expected]
    assert found == [one if one.exit in (1, 2) else other for one, other in zip(expected, whole, strict=True)]


def test_each_image_of_a_request_leaves_by_itself(with_exits: Path, digits: list, tmp_path: Path) -> None:
    """And clients who ask at once need not be as sure as each other."""
    wanted = [0.0, *levels(with_exits), 1.01]
    found: dict[float, list[Prediction]] = {}
    with Service(
        with_exits, port=0, metrics_port=0, rates=PLAIN, wait=0.05, ledger=tmp_path / "ledger", overrides=CUTS[1]
    ) as service:

        def ask(client: int, sure: float) -> None:
            how = {"confidence": sure, "client": client, "batch": 5 + client, "top": 10}
            with RemotePredictor(f"127.0.0.1:{service.port}", state=tmp_path / str(client), **how) as predictor:  # type: ignore[arg-type]
                found[sure] = predictor.predict(digits)

        threads = [threading.Thread(target=ask, args=one) for one in enumerate(wanted)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batches = int(service.metrics.text().partition("splitfed_batch_requests_count ")[2].split()[0])
        requests = int(re.findall(r'requests_total{outcome="answered"} (\d+)', service.metrics.text())[0])
    assert batches < requests
    for sure in wanted:
        expected = local(with_exits, digits, 1, confidence=sure)
        assert [(one.label, one.exit) for one in found[sure]] == [(one.label, one.exit) for one in expected]
        for one, other in zip(found[sure], expected, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
