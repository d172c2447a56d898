"""A service that adapts, and its clients: what crosses, what comes back, who is answered by what, and how all of it is
undone and survives a restart."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
import torch
from helpers import DEEPER, small
from PIL import Image
from waiting import until

from splitfed import Prediction, Predictor, RemotePredictor, simulate
from splitfed.cli.main import app
from splitfed.data.batches import normaliser
from splitfed.data.sources.base import open_digits
from splitfed.errors import RunError, SplitfedError
from splitfed.inference.asking import MODEL
from splitfed.inference.exits import features, heads
from splitfed.inference.pictures import read
from splitfed.inference.remote.dialling import Dialler
from splitfed.inference.remote.keeping import pack_image
from splitfed.inference.remote.selecting import Informative, Selector
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.adaptation import store
from splitfed.inference.service.serve import Service
from splitfed.model.parts import whole_state
from splitfed.seeds import Key
from splitfed.wire.answers import KEEP, path

PLAIN = ["plain={reducer: none, smashed: {codec: float32, lossless: none}}"]
SELECT = "{kind: entropy, high: 0.95, low: 0.02}"
QUICK = "batch: 4, replayed: 4, publish: 1, lr: 0.05"


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    source = open_digits()[0]
    return [source.image(row) for row in range(20)]


def serving(run: Path, tmp_path: Path, adapt: str | None, port: int = 0) -> Service:
    return Service(run, port=port, metrics_port=0, rates=PLAIN, batch=1, ledger=tmp_path / "ledger", adapt=adapt)


def asking(service: Service, tmp_path: Path, client: int = 3, **how) -> RemotePredictor:
    where = f"127.0.0.1:{service.port}"
    return RemotePredictor(where, state=tmp_path / f"state-{client}", client=client, batch=1, top=10, **how)


def whole(model: RunModel, images: Sequence[Image.Image]) -> torch.Tensor:
    """What a model says of images, one by one."""
    normalise, found = normaliser(model.mean, model.std), []
    for picture in read(images, 8, None, 8):
        assert picture.pixels is not None
        with torch.no_grad():
            trunk = model.trunk
            tokens = trunk.begin(normalise(picture.pixels[None]))
            found.append(trunk.end(trunk.go_on(0, tokens)).softmax(1))
    return torch.cat(found)


def said(found: Sequence[Prediction], model: RunModel) -> torch.Tensor:
    return torch.tensor([[one.probabilities[name] for name in model.classes] for one in found])


def kept_by_the_rules(run: Path, digits: list) -> list[int]:
    """Which images are kept, by the last exit before the cut."""
    predictor = Predictor(run, confidence=0, top=10)
    pixels = torch.stack([one.pixels for one in read(digits, 8, None, 8) if one.pixels is not None])
    exits = heads(predictor.model)
    seen, _ = features(predictor.model, exits, normaliser(predictor.model.mean, predictor.model.std)(pixels))
    with torch.no_grad():
        probabilities = exits(seen)[1].softmax(1)
    keep = Selector(Informative(high=0.95, low=0.02), Key(0))(probabilities)
    return keep.nonzero().flatten().tolist()


def test_the_back_learns_from_what_is_sent_anyway(with_exits: Path, digits: list, tmp_path: Path) -> None:
    kept = kept_by_the_rules(with_exits, digits)
    assert 8 <= len(kept) < len(digits)
    with serving(with_exits, tmp_path, f"{{{QUICK}}}") as service:
        base = service.backs.base
        with asking(service, tmp_path) as plain:
            before = plain.predict(digits)
        with asking(service, tmp_path, select=SELECT) as predictor:
            predictor.predict(digits)
            assert predictor.kept is not None
            assert (predictor.kept.seen, predictor.kept.kept, predictor.kept.lost) == (len(digits), len(kept), 0)
            until(lambda: written(tmp_path) == len(kept) // 4)
            # No tensor more has crossed than for who keeps nothing, and nothing comes back: a mark is all.
            sizes = {place: sent for place, sent in predictor.bytes.items() if place[1] != "envelope"}
            assert sizes == {place: plain.bytes[place] for place in sizes}
            marks = predictor.bytes["up", "envelope"] - plain.bytes["up", "envelope"]
            assert marks == len(kept) * len(b"\xa4kept\xa11")
        with asking(service, tmp_path) as plain:
            after = plain.predict(digits[:1])
        sums = service.tally.sums()
        assert sums[3, "here", "kept"] == (len(kept), 0)
        assert sums[3, "here", "teacher"] == (len(kept) // 4 * 4, 0)
        assert sums[-1, "here", "student"] == (len(kept) // 4 * 8 - 4, 0)  # the first step has nothing to replay
        assert f'splitfed_adapted_images_total{{what="kept"}} {sums[3, "here", "kept"][0]}\n' in service.metrics.text()
        now = service.backs.now
        assert now.name == base.name
        assert torch.equal(said(after, now.model), whole(now.model, digits[:1]))
        assert after[0].probabilities != before[0].probabilities
        old, new = whole_state(*base.model.parts), whole_state(*now.model.parts)
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        assert changed
        assert all(re.fullmatch(r"(blocks\.[23]\.norm[12]|norm|fc_norm)\.(weight|bias)", name) for name in changed)


def written(tmp_path: Path) -> int:
    """The steps of what is served and on disk."""
    found = store.load(tmp_path / "ledger")
    return sum(steps for steps, _ in found.learnt.values()) if found else 0


def learn(service: Service, predictor: RemotePredictor, digits: list, steps: int) -> None:
    predictor.predict(digits)
    until(lambda: service.adapter.steps >= steps)


def test_the_whole_learns_from_images_and_norms_come_back(with_exits: Path, digits: list, tmp_path: Path) -> None:
    kept = kept_by_the_rules(with_exits, digits)
    pixels = torch.stack([one.pixels for one in read(digits, 8, None, 8)])
    with serving(with_exits, tmp_path, f"{{norms: whole, {QUICK}, publish: 1000}}") as service:
        with asking(service, tmp_path, select=SELECT, send_images=True) as predictor:
            learn(service, predictor, digits, len(kept) // 4)
            count = predictor.kept
        # Bytes are those of the images that the rules name, as they stand in frames, and of answers and requests.
        sizes = [pack_image(pixels[row], number).sizes["kept"].sent for number, row in enumerate(kept)]
        assert predictor.bytes["up", "kept"] == sum(sizes)
        assert service.tally.sums()[3, "up", "kept"] == (len(kept), sum(sizes))
        assert count is not None
        assert (count.seen, count.kept, count.lost) == (len(digits), len(kept), 0)
        until(lambda: service.tally.sums()[3, "here", "teacher"] == (len(kept) // 4 * 4, 0))
    # What was learnt at the end is there.
    with serving(with_exits, tmp_path, f"{{norms: whole, {QUICK}}}", service.port) as service:
        base, now = service.backs.base, service.backs.of(3)
        assert now.name != base.name
        assert service.adapter.steps == len(kept) // 4
        with asking(service, tmp_path) as predictor:
            assert torch.equal(said(found := predictor.predict(digits), now.model), whole(now.model, digits))
            assert found != Predictor(with_exits, batch=1, top=10).predict(digits)
            # All but the norms was here, from before the restart.
            assert {role for _, role in predictor.bytes} == {"norms", "smashed", "answer", "envelope"}
            assert predictor.bytes["down", "norms"] == len(now.norms) < len(now.bundle) / 5
        with asking(service, tmp_path, client=4) as stranger:
            assert stranger.predict(digits) == found
            assert stranger.bytes["down", "front"] == len(now.bundle)
        service.adapter.forget(None)
        assert service.backs.of(3).name == base.name
        with asking(service, tmp_path) as predictor:
            assert predictor.predict(digits) == Predictor(with_exits, batch=1, top=10).predict(digits)
    assert store.load(tmp_path / "ledger") is None


def test_who_keeps_images_takes_the_new_norms_by_itself(with_exits: Path, digits: list, tmp_path: Path) -> None:
    with (
        serving(with_exits, tmp_path, f"{{norms: whole, {QUICK}}}") as service,
        asking(service, tmp_path, select=SELECT, send_images=True) as predictor,
    ):
        learn(service, predictor, digits, 2)
        found: list[Prediction] = []

        def by_new_norms() -> bool:
            """What is asked teaches too, so norms may change again while it is answered."""
            before = predictor.front
            found[:] = predictor.predict(digits[:4])
            return before == predictor.front != service.backs.base.name

        until(by_new_norms)
        now = service.backs.named(predictor.front[:MODEL], 3)
        assert now is not None
        assert torch.equal(said(found, now.model), whole(now.model, digits[:4]))
        assert predictor.bytes["down", "norms"] % len(now.norms) == 0
        assert predictor.bytes["down", "front"] == len(now.bundle)  # once, at the beginning


def test_clients_may_have_norms_of_their_own(with_exits: Path, digits: list, tmp_path: Path) -> None:
    keys = f"{{norms: whole, pool: client, {QUICK}}}"
    expected = Predictor(with_exits, batch=1, top=10).predict(digits)
    with serving(with_exits, tmp_path, keys) as service:
        for client, part in ((3, digits[:10]), (4, digits[10:])):
            so_far = service.adapter.steps
            with asking(service, tmp_path, client, select=SELECT, send_images=True) as predictor:
                # All of them: one that came late would be taken for the next client's.
                learn(service, predictor, part, so_far + len(kept_by_the_rules(with_exits, part)) // 4)
    with serving(with_exits, tmp_path, keys) as service:
        models = {client: service.backs.of(client) for client in (3, 4, 5)}
        assert len({back.name for back in models.values()}) == 3
        assert models[5].name == service.backs.base.name
        for client, back in models.items():
            with asking(service, tmp_path, client) as predictor:
                assert torch.equal(said(predictor.predict(digits), back.model), whole(back.model, digits))
        # Another client's front is not answered.
        assert service.backs.named(models[3].name[:MODEL], 4) is None
        with pytest.raises(SplitfedError, match="--client 7: has no norms of its own"):
            command("adapted", with_exits, "--ledger", tmp_path / "ledger", "--forget", "--client", 7)
        assert not store.forget(tmp_path / "ledger", 3)
        assert service.forget() == "what was adapted for client 3 is forgotten"
        assert service.forget() is None
        assert [service.backs.of(client).name for client in (3, 4)] == [models[5].name, models[4].name]
        with asking(service, tmp_path, 3) as predictor:
            assert predictor.predict(digits) == expected
    with serving(with_exits, tmp_path, keys) as service:
        assert [service.backs.of(client).name for client in (3, 4)] == [models[5].name, models[4].name]


def command(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False, prog_name="splitfed")


def test_the_command_says_how_many_it_has_kept(
    with_exits: Path, digits: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    (tmp_path / "images").mkdir()
    for number, image in enumerate(digits[:3]):
        image.save(tmp_path / "images" / f"{number}.png")
    with serving(with_exits, tmp_path, "whole") as service:
        ask = ("predict", f"127.0.0.1:{service.port}", tmp_path / "images", "--state", tmp_path / "state")
        command(*ask, "--confidence", 0, "--select", "{kind: random, share: 1}", "--send-images")
        told = capsys.readouterr()
        assert told.err == f"3 of 3 images were kept for 127.0.0.1:{service.port}\n"
        assert told.out.count("exit after block 1") == 3
        assert service.tally.sums()[0, "up", "kept"][0] == 3
        with pytest.raises(SplitfedError, match=r"--select: .* say --send-images"):
            command(*ask, "--select", "entropy")
    with pytest.raises(SplitfedError, match="--select is for a server"):
        command("predict", with_exits, tmp_path / "images", "--select", "entropy")


def test_one_command_tells_and_undoes(with_exits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ledger = ("--ledger", tmp_path / "ledger")
    command("adapted", with_exits, *ledger)
    assert capsys.readouterr().out == "nothing was adapted\n"
    with serving(with_exits, tmp_path, f"{{norms: whole, {QUICK}}}") as service:
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        for number in range(9):
            assert service.adapter.take_image(3, pack_image(image + 20 * number, number).buffer)[1:] == (number, True)
        until(lambda: service.adapter.steps == 2)
    command("adapted", with_exits, *ledger)
    assert capsys.readouterr().out == "norms: whole, teacher: run\nall: 2 steps by 8 kept images\n"
    for keys, why in (("back", "norms: whole"), (f"{{norms: whole, pool: client, {QUICK}}}", "pool: all")):
        with pytest.raises(RunError, match=f"was adapted with {why}: .* splitfed adapted .* --forget"):
            serving(with_exits, tmp_path, keys).__enter__()
    with serving(
        with_exits, tmp_path, None
    ) as service:  # without --adapt nothing of it is served, and it can be undone
        assert service.backs.now is service.backs.base
        store.forget(tmp_path / "ledger", None)
        assert service.forget() == "what was adapted for all clients is forgotten"
    command("adapted", with_exits, *ledger, "--forget")
    assert capsys.readouterr().out == "forgotten\n"
    command("adapted", with_exits, *ledger)
    assert capsys.readouterr().out == "nothing was adapted\n"


def test_another_checkpoint_begins_anew(with_exits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(with_exits, tmp_path / "run"))
    with serving(run, tmp_path, f"{{{QUICK}}}") as service:
        tokens = torch.randn(8, 5, 16, generator=Key(0).generator())
        service.adapter.take_tokens(1, service.backs.base, 2, tokens)
        until(lambda: service.backs.now is not service.backs.base)
        assert service.reload() == "round 8 is served, as before"
        assert service.backs.now is not service.backs.base  # what was learnt stays
        before = service.backs.base
        shutil.rmtree(run / "checkpoints" / "round-000008")
        (run / "exits.safetensors").unlink()
        with pytest.raises(RunError, match="clients keep images by what an exit before the cut says"):
            service.reload()
        service.adapter.take_tokens(1, before, 2, tokens)  # of a back that is served no more: nothing happens
        assert service.backs.now is service.backs.base is not before


def test_what_cannot_be_is_told_in_a_line(with_exits: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"--adapt: clients keep images by .* make one with: splitfed exits .* --blocks 2"
    ):
        serving(finished, tmp_path, "back")
    with pytest.raises(SplitfedError, match="--adapt: nroms: unknown key, did you mean 'norms'"):
        serving(with_exits, tmp_path, "{nroms: back}")
    with (
        serving(with_exits, tmp_path, None) as service,
        pytest.raises(RunError, match=r"--select: .* adapts nothing: it was started without --adapt"),
    ):
        asking(service, tmp_path, select="entropy")
    with serving(with_exits, tmp_path, "back") as service:
        with pytest.raises(RunError, match=r"--select: .* takes no images: leave out --send-images"):
            asking(service, tmp_path, select="entropy", send_images=True)
        with pytest.raises(RunError, match="images may leave, and nothing says which"):
            asking(service, tmp_path, send_images=True)
        with pytest.raises(SplitfedError, match="--select: unknown kind 'all'"):
            asking(service, tmp_path, select="all")
    with (
        serving(with_exits, tmp_path, "whole") as service,
        pytest.raises(RunError, match=r"--select: .* by images: say --send-images if they may leave this device"),
    ):
        asking(service, tmp_path, select="entropy")
    with (
        serving(finished, tmp_path, None) as service,
        pytest.raises(RunError, match=r"--select: images are kept by what an exit says, and what .* serves has none"),
    ):
        asking(service, tmp_path, select="entropy")


def test_a_stream_of_something_else_is_ended(with_exits: Path, tmp_path: Path) -> None:
    with serving(with_exits, tmp_path, f"{{norms: whole, {QUICK}}}") as service:
        dialler = Dialler("127.0.0.1", service.port, None, 3)
        channel = dialler.channel(1 << 20)
        large = pack_image(torch.zeros(3, 16, 16, dtype=torch.uint8), 1).buffer
        for sent, why in ((b"nonsense", "a frame of 8 bytes"), (large, "16 x 16 pixels")):
            call = channel.stream_stream(path(KEEP))(iter([sent]), metadata=dialler.proof(channel, 5))
            with pytest.raises(grpc.RpcError, match=why):
                list(call)
        image = pack_image(torch.zeros(3, 8, 8, dtype=torch.uint8), 9).buffer
        call = channel.stream_stream(path(KEEP))(iter([image]), metadata=dialler.proof(channel, 5))
        assert len(list(call)) == 1
        sums = service.tally.sums()
        assert sums[3, "up", "envelope"][1] + sums[3, "up", "kept"][1] == len(b"nonsense") + len(large) + len(image)
        assert sums[3, "here", "kept"] == (1, 0)
        channel.close()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose labels, and the end of whose model, are the clients'."""
    keys = ("federation.labels=private", "model.exits={blocks: [2]}", "federation.rounds=1", "model.tail=1")
    return simulate(small(*DEEPER, *keys), runs=tmp_path_factory.mktemp("private")).folder


@pytest.mark.parametrize("which", ["back", "whole"])
def test_private_labels_take_part(private: Path, digits: list, tmp_path: Path, which: str) -> None:
    """The tail learns with the front, at the server; no label is looked at."""
    with serving(private, tmp_path, f"{{norms: {which}, {QUICK}, publish: 2}}") as service:
        with asking(service, tmp_path, select="{kind: random, share: 1}", send_images=which == "whole") as predictor:
            learn(service, predictor, digits[:8], 2)
            until(lambda: written(tmp_path) == 2)
        now, base = service.backs.now, service.backs.base
        with asking(service, tmp_path) as predictor:
            assert torch.equal(said(predictor.predict(digits), now.model), whole(now.model, digits))
        tails = [back.model.parts.tail.state_dict() for back in (base, now)]
        same = all(torch.equal(tensor, tails[1][name]) for name, tensor in tails[0].items())
        assert same == (which == "back")
