"""What crosses for an image that a client does not answer itself: exact where nothing is lost, and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DEEPER, small
from hypothesis import given
from hypothesis import strategies as st

from splitfed import simulate
from splitfed.compression.codecs.floats import FloatCodec
from splitfed.compression.lossless import NoStage
from splitfed.errors import CodecError, Diverged, RunError, WireError
from splitfed.inference.asking import Asked, Asking
from splitfed.inference.deciding import Rule
from splitfed.inference.exits import Exits, behind, load
from splitfed.inference.rates import rates
from splitfed.inference.run_model import RunModel
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.seeds import Key
from splitfed.split.cut import Cut
from splitfed.wire.frame import pack

TOKENS = "discard={reducer: {kind: discard_tokens, kept_tokens: 0.6}}"
PLAIN = "plain={reducer: none, smashed: {codec: float32}}"
FEW = "few={reducer: none, smashed: {codec: {kind: uniform, bits: 4}}}"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=Key(0).generator())


def asking(model: RunModel, rate: str, images: int = 3, exits: Exits | None = None) -> Asking:
    geometry = model.trunk.front.geometry(images, len(model.classes))
    return Asking(one_rate(model, rate), model.trunk, geometry, model.device, exits)


def one_rate(model: RunModel, rate: str = PLAIN) -> Any:
    return rates(model.scenario.compression, [rate])[0].compression


def made(model: RunModel, images: torch.Tensor, block: int) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """What a block makes of images, and what its class token looks at."""
    attention = ClsAttention(model.trunk.front, block)
    with torch.no_grad():
        tokens = (
            model.trunk.go_on(0, model.trunk.begin(images), block)
            if block < model.trunk.cut
            else model.parts.front(images)
        )
    looked_at = attention.read()
    attention.close()
    return tokens, lambda: looked_at


def there_and_back(one: Asking, tokens: torch.Tensor, block: int, attention: Callable | None = None) -> torch.Tensor:
    up = one.pack(tokens, block, Key(1), number=7, model="f" * 64, attention=attention)
    asked = one.unpack(up.buffer)
    assert (asked.number, asked.block, asked.model) == (7, block, "f" * 16)
    return one.unpack_answer(one.answer(asked).buffer, 7, len(tokens)).logits


@pytest.mark.parametrize("block", [1, 2])
def test_nothing_lost_is_the_whole_model_to_the_last_bit(finished: Path, images: torch.Tensor, block: int) -> None:
    model = RunModel.read(finished)
    with torch.no_grad():
        expected = model.parts.whole()(images)
    assert there_and_back(asking(model, PLAIN), made(model, images, block)[0], block).equal(expected)


@pytest.mark.parametrize("more", [["federation.labels=private"], ["compression.reducer={kind: bottleneck, width: 4}"]])
@pytest.mark.parametrize("block", [1, 2])
def test_so_it_is_with_a_tail_and_with_a_reducers_own_layers(
    more: list[str], block: int, images: torch.Tensor, tmp_path: Path
) -> None:  # fmt: skip
    run = simulate(small(*DEEPER, *more, "federation.rounds=1", "data.limit=48"), runs=tmp_path).folder
    model = RunModel.read(run)
    with torch.no_grad():
        expected = model.parts.whole()(images)
    assert there_and_back(asking(model, "run"), made(model, images, block)[0], block).equal(expected)


@pytest.mark.parametrize("block", [1, 2])
def test_tokens_are_chosen_by_the_block_that_they_leave_from(
    finished: Path, images: torch.Tensor, block: int
) -> None:  # fmt: skip
    model = RunModel.read(finished)
    tokens, attention = made(model, images, block)
    kept = 1 + attention()[:, 1:].topk(2, 1).indices.sort(1).values  # 3 of 5, the class token with them
    chosen = torch.cat([tokens[:, :1], tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))], 1)
    with torch.no_grad():
        expected = model.trunk.end(model.trunk.go_on(block, chosen))
    found = there_and_back(asking(model, TOKENS), tokens, block, attention)
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_merges_samples_is_refused_with_the_way_out(finished: Path) -> None:
    model = RunModel.read(finished)
    for reducer in ("{kind: adc, ratio: 0.5}", "{kind: merge_samples, kept_samples: 0.5}", "{kind: c3sl, r: 2}"):
        with pytest.raises(RunError, match=r"merges samples.*discard_tokens"):
            asking(model, f"merged={{reducer: {reducer}}}")


@pytest.fixture(scope="module", params=["early", "rising"])
def request_(request: pytest.FixtureRequest, finished: Path, images: torch.Tensor) -> tuple[Asking, bytes]:
    model = RunModel.read(finished)
    one = asking(model, FEW)
    if request.param == "early":
        return one, one.pack(made(model, images, 1)[0], 1, Key(1)).buffer
    how = {"rule": Rule(0.9, "entropy", 0.1), "before": torch.tensor([0.0, 0.5, 1.0])}
    return one, one.pack(made(model, images, 2)[0], 2, Key(1), **how).buffer  # type: ignore[arg-type]


@given(st.data())
def test_altered_requests_are_wire_errors_and_nothing_else(request_: tuple[Asking, bytes], data: st.DataObject) -> None:
    one, buffer = request_
    place, value = data.draw(st.integers(0, len(buffer) - 1)), data.draw(st.integers(1, 255))
    altered = bytearray(buffer)
    altered[place] ^= value
    with pytest.raises(WireError):
        one.unpack(bytes(altered))
    with pytest.raises(WireError):
        one.unpack(buffer[:place])


def test_what_fits_and_yet_is_none_is_refused(finished: Path, images: torch.Tensor) -> None:
    model = RunModel.read(finished)
    one = asking(model, PLAIN)
    tokens = made(model, images, 1)[0]
    cut = Cut(one_rate(model), model.trunk.front.geometry(3, len(model.classes)), model.device)
    packets = cut.encode({"smashed": tokens}, Key(0), "")
    for meta in ({"block": 0, "model": ""}, {"block": 2, "model": ""}, {"block": "1", "model": ""}, {"block": 1},
                 {"block": 1, "model": "f" * 17}, {"block": 1, "model": 3},
                 *({"block": 1, "model": "", "kept": said} for said in ("8", "", 1, "0x1", "-1")),
                 *({"block": 1, "model": "", "sure": said} for said in (-0.1, 1.1, 1, True, "0.9")),
                 *({"block": 1, "model": "", "sure": 0.9, "measure": said} for said in ("", "certainty", 1, True)),
                 *({"block": 1, "model": "", "sure": 0.9, "rise": said} for said in ("", "0.1", 1, True)),
                 {"block": 1, "model": "", "rise": 0.1}, {"block": 1, "model": "", "measure": "margin"}):  # fmt: skip
        with pytest.raises(WireError):
            one.unpack(pack("ask_early", 0, 0, 0, packets, meta).buffer)
    with pytest.raises(WireError):  # more images than a request may hold
        one.unpack(asking(model, PLAIN, 9).pack(torch.cat([tokens] * 2), 1, Key(0)).buffer)
    huge = cut.encode({"smashed": tokens * 1e9}, Key(0), "")
    with pytest.raises(Diverged):
        one.unpack(pack("ask_early", 0, 0, 0, huge, {"block": 1, "model": ""}).buffer)


def test_which_images_are_kept_arrives(finished: Path, images: torch.Tensor) -> None:
    model = RunModel.read(finished)
    one, tokens = asking(model, PLAIN, 1024), made(model, images, 1)[0]
    for count in (3, 1024):
        kept = [row % 3 == 2 for row in range(count)]
        many = tokens[:1].expand(count, -1, -1)
        packed = one.pack(many, 1, Key(1), kept=kept)
        assert one.unpack(packed.buffer).kept == tuple(row for row in range(count) if row % 3 == 2)
    plain = one.pack(tokens, 1, Key(1))
    assert one.unpack(plain.buffer).kept == ()
    assert one.pack(tokens, 1, Key(1), kept=[False] * 3).buffer == plain.buffer


@pytest.mark.parametrize("rule", [Rule(0.9), Rule(0.0, "margin"), Rule(1.0, "entropy", -0.25)])
def test_how_sure_an_exit_must_be_arrives(finished: Path, images: torch.Tensor, rule: Rule) -> None:
    model = RunModel.read(finished)
    one, tokens = asking(model, PLAIN), made(model, images, 2)[0]
    before = torch.tensor([0.1, 1 / 3, 1.0])
    asked = one.unpack(one.pack(tokens, 2, Key(1), rule=rule, before=before).buffer)
    assert asked.rule == rule
    if rule.rise is None:
        assert asked.before is None
    else:
        assert asked.before is not None
        assert asked.before.equal(before)
    assert one.unpack(one.pack(tokens, 2, Key(1), rule=rule).buffer).before is None


def test_who_asks_no_exit_sends_what_was_ever_sent(with_exits: Path, images: torch.Tensor) -> None:
    """Frames made by hand, in the format before exits of the server were asked."""
    model = RunModel.read(with_exits)
    later, _ = behind(model.trunk, load(model)[0])
    one, tokens = asking(model, PLAIN, exits=later), made(model, images, 2)[0]
    cut = Cut(one_rate(model), model.trunk.front.geometry(3, len(model.classes)), model.device)
    old = pack("ask", 0, 0, 7, cut.encode({"smashed": tokens}, Key(0), ""), {"model": "f" * 16}).buffer
    assert one.pack(tokens, 2, Key(1), number=7, model="f" * 64).buffer == old
    with torch.no_grad():
        logits = model.parts.whole()(images)
    packet = FloatCodec(torch.float32).encode(logits, Key(0))
    assert one.answer(one.unpack(old)).buffer == pack("answer", 0, 0, 7, {"answer/made": (packet, NoStage())}).buffer


def test_confidences_that_are_none_are_refused(finished: Path, images: torch.Tensor) -> None:
    model = RunModel.read(finished)
    one, tokens = asking(model, PLAIN), made(model, images, 2)[0]
    for before in ([0.5, 0.5], [0.5, 0.5, 1.5], [-0.1, 0.5, 0.5]):
        with pytest.raises(WireError, match="confidence"):
            one.unpack(
                one.pack(tokens, 2, Key(1), rule=Rule(0.9, rise=0.1), before=torch.tensor(before)).buffer
            )  # fmt: skip
    cut = Cut(one_rate(model), model.trunk.front.geometry(3, len(model.classes)), model.device)
    packets = cut.encode({"smashed": tokens}, Key(0), "")
    packets["confidence"] = FloatCodec(torch.float32).encode(torch.full((3,), 0.5), Key(0)), NoStage()
    for meta in ({}, {"sure": 0.9}):
        with pytest.raises(WireError, match="by how much"):
            one.unpack(pack("ask_rising", 0, 0, 0, packets, {"model": "", **meta}).buffer)
    many = asking(model, PLAIN, 1025)
    with pytest.raises(WireError, match="1024 are the most"):
        many.unpack(many.pack(tokens[:1].expand(1025, -1, -1), 2, Key(1), rule=Rule(0.9)).buffer)


def test_each_image_leaves_by_the_rule_of_its_own_request(with_exits: Path, images: torch.Tensor) -> None:
    """Computed together, requests are answered as each would be alone."""
    model = RunModel.read(with_exits, overrides=["model.cut=1"])
    later, _ = behind(model.trunk, load(model)[0])
    assert later is not None
    one, many = asking(model, PLAIN, 16, later), torch.randn(16, 3, 8, 8, generator=Key(1).generator())
    tokens = model.parts.front(many)
    rules = [None, Rule(0.0), Rule(0.3), Rule(0.3, "entropy"), Rule(0.3, rise=0.2), Rule(0.25, "margin"), Rule(1.0)]
    before = torch.linspace(0, 1, 16)
    asked = [Asked(number, 1, "", tokens, (), rule, before) for number, rule in enumerate(rules)]
    found = [one.unpack_answer(a.buffer, n, 16, (2, 3)) for n, a in enumerate(one.answers(asked))]
    for number, request in enumerate(asked):
        for row in range(16):
            alone = Asked(number, 1, "", tokens[row : row + 1], (), request.rule, before[row : row + 1])
            said = one.unpack_answer(one.answer(alone).buffer, number, 1, (2, 3))
            assert found[number].exits[row] == said.exits[0]
            assert torch.allclose(found[number].logits[row], said.logits[0], atol=1e-5)
    assert set(found[0].exits) == set(found[6].exits) == {None}
    assert set(found[1].exits) == {2}
    assert set(found[2].exits) | set(found[4].exits) == {2, 3, None}


@pytest.mark.parametrize("lie", [
    {"exit_3": "8"}, {"exit_3": "1", "exit_2": "3"}, {"exit_1": "1"}, {"exit_3": ""}, {"exit_3": 1}, {"exit_3": "-1"},
    {"exit_3": "f" * 257 }, {"why": "so"},
])  # fmt: skip
def test_an_exit_that_did_not_answer_is_refused(finished: Path, lie: dict) -> None:
    one = asking(RunModel.read(finished), PLAIN)
    packets = {"answer/made": (FloatCodec(torch.float32).encode(torch.zeros(3, 10), Key(0)), NoStage())}
    assert one.unpack_answer(one.pack_answer(7, torch.zeros(3, 10), [2, None, 3]).buffer, 7, 3, (2, 3)).exits == (
        2, None, 3,
    )  # fmt: skip
    with pytest.raises((WireError, CodecError)):
        one.unpack_answer(pack("answer", 0, 0, 7, packets, lie).buffer, 7, 3, (2, 3))
    with pytest.raises(WireError, match="more than was asked"):
        one.unpack_answer(pack("answer", 0, 0, 7, packets, {"exit_3": "1"}).buffer, 7, 3)


def test_an_answer_is_to_what_was_asked(finished: Path, images: torch.Tensor) -> None:
    model = RunModel.read(finished)
    one = asking(model, PLAIN)
    asked = one.unpack(one.pack(made(model, images, 1)[0], 1, Key(1), number=7).buffer)
    answer = one.answer(asked).buffer
    for number, count in ((6, 3), (7, 2)):
        with pytest.raises(WireError):
            one.unpack_answer(answer, number, count)
