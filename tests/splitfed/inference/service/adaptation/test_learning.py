"""A step of adaptation: against plain formulas, of norms alone, from images and from what crossed; and what it does to
images that have changed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from splitfed.config import read_option
from splitfed.data.batches import normaliser
from splitfed.data.corruptions import corrupt
from splitfed.data.sources.base import open_digits
from splitfed.errors import RunError, SplitfedError
from splitfed.inference.exits import heads
from splitfed.inference.remote.keeping import pack_image, unpack_image
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.adaptation.kept import Kept, Replay, pixels
from splitfed.inference.service.adaptation.learning import Pupil, student_loss, teacher_loss
from splitfed.inference.service.adaptation.models import OtherModel, OwnModel
from splitfed.inference.service.adaptation.norms import learning
from splitfed.inference.service.adaptation.settings import Adapt, AdaptConfig, TeacherConfig
from splitfed.model.parts import Parts, whole_state
from splitfed.seeds import Key

SIDE = 8


@pytest.fixture(scope="module")
def model(with_exits: Path) -> RunModel:
    return RunModel.read(with_exits)


def changed(count: int, start: int = 0) -> list[Kept]:
    """Digits in another light, as they are sent."""
    source, found = open_digits()[0], []
    for row in range(start, start + count):
        pixels = np.array(source.image(row).convert("RGB").resize((SIDE, SIDE)))
        image = torch.from_numpy(corrupt(pixels, "brightness", 3, Key(0).numpy())).permute(2, 0, 1)
        found.append(Kept(0, unpack_image(pack_image(image, row).buffer, SIDE)[2]))
    return found


def crossed(model: RunModel, samples: list[Kept]) -> list[Kept]:
    """What the front makes of them, of some after its first block, and of some with fewer tokens."""
    normalise, found = normaliser(model.mean, model.std), []
    images = torch.stack([pixels(sample.content, SIDE) for sample in samples if isinstance(sample.content, bytes)])
    with torch.no_grad():
        tokens = model.trunk.begin(normalise(images))
        first = model.trunk.block(1, tokens)
        second = model.trunk.block(2, first)
    for row in range(len(samples)):
        found.append(Kept(1, first[row]) if row % 3 == 0 else Kept(2, second[row, : 4 if row % 3 == 1 else 5]))
    return found


def settings(**keys: object) -> AdaptConfig:
    return read_option("--adapt", keys, Adapt)


def pupil(model: RunModel, which: str, **keys: object) -> Pupil:
    own = settings(norms=which, **keys)
    exits = heads(model) if which == "whole" else None
    student, teacher = OwnModel(model, exits, own.norms), OwnModel(model, None, own.norms)
    return Pupil(None, student, teacher, own, Key(0))


def plain_student(said: list[float], taught: list[float], high: float) -> float:
    entropy = -sum(p * math.log(p) for p in said)
    distance = sum(t * math.log(t / p) for t, p in zip(taught, said, strict=True) if t > 0)
    label = -math.log(said[taught.index(max(taught))])
    return math.exp(high * math.log(len(said)) - entropy) * (3 * entropy + 3 * distance + label)


def test_the_losses_are_those_of_the_formulas() -> None:
    numbers = Key(2).generator()
    said = torch.randn(6, 5, generator=numbers).softmax(1)
    taught = torch.cat([torch.randn(5, 5, generator=numbers).softmax(1), torch.eye(5)[:1]])
    expected = [plain_student(a, b, 0.4) for a, b in zip(said.tolist(), taught.tolist(), strict=True)]
    assert float(student_loss(said.log(), taught, 0.4)) == pytest.approx(sum(expected) / 6, rel=1e-5)
    entropies = [-sum(p * math.log(p) for p in row) for row in said.tolist()]
    expected = [entropy * math.exp(0.4 * math.log(5) - entropy) for entropy in entropies]
    assert float(teacher_loss(said.log(), 0.4)) == pytest.approx(sum(expected) / 6, rel=1e-5)


def test_weights_have_no_gradient() -> None:
    """Else it would pay to be at a loss."""
    logits = torch.randn(4, 5, generator=Key(3).generator(), requires_grad=True)
    teacher_loss(logits.log_softmax(1), 0.4).backward()
    found = logits.grad
    logits.grad = None
    logs = logits.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    ((0.4 * math.log(5) - entropy).exp().detach() * entropy).mean().backward()
    assert torch.allclose(found, logits.grad)


@pytest.mark.parametrize("which", ["back", "whole"])
def test_a_step_is_down_the_losses_gradient_and_of_norms_alone(model: RunModel, which: str) -> None:
    before = {name: tensor.clone() for name, tensor in whole_state(*model.parts).items()}
    samples = changed(6) if which == "whole" else crossed(model, changed(6))
    learner = pupil(model, which, lr=0.1, momentum=0.9)
    twin, teacher = pupil(model, which).student, pupil(model, which).student
    assert learner.learn(samples, Replay(10)) == 6
    taught = teacher.say(samples)[-1].detach().exp()
    torch.stack([student_loss(one, taught, 0.4) for one in twin.say(samples)]).mean().backward()
    assert len(twin.say(samples)) == (3 if which == "whole" else 1)  # two exits of the front, and the model
    for name, parameter in learner.student.norms.items():
        own = twin.norms[name]
        assert own.grad is not None
        assert bool(own.grad.any())
        assert torch.allclose(parameter, own - 0.1 * own.grad, atol=1e-6), name
    # What is served meanwhile, and all but the norms, is as it was.
    after = whole_state(*model.parts)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    names = {name.partition(".")[2] for name in learner.student.norms}
    adapted = whole_state(*learner.student.model.parts)
    assert {name for name in adapted if not torch.equal(adapted[name], before[name])} == names
    parts = [name.partition(".")[0] for name in learner.student.norms]
    assert set(parts) == ({"front", "back"} if which == "whole" else {"back"})


def test_what_crossed_is_said_the_same_of_in_any_company(model: RunModel) -> None:
    """Samples of several blocks and lengths are computed apart, and come back in their order."""
    own, samples = OwnModel(model, None, "back"), crossed(model, changed(7))
    together = own.say(samples)[0]
    alone = torch.cat([own.say([sample])[0] for sample in samples])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_norms_are_all_layer_norms_of_the_model(model: RunModel) -> None:
    expected = sum(
        parameter.numel() for part in model.parts for module in part.modules() if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in learning(model.parts, "whole").values()) == expected


def mean_entropy(model: OwnModel, samples: list[Kept]) -> float:
    with torch.no_grad():
        logs = model.say(samples)[-1]
    return float(-(logs.exp() * logs).sum(1).mean())


def test_steps_make_the_model_surer_of_changed_images(model: RunModel) -> None:
    samples, replay = changed(32), Replay(100)
    learner = pupil(model, "whole", lr=0.02, teacher_lr=0.002, replayed=16)
    before = mean_entropy(learner.student, samples)
    seen = [learner.learn(samples[start : start + 8], replay) for start in range(0, 32, 8)]
    assert seen == [8, 16, 24, 24]  # with what there is to replay, up to 16
    assert mean_entropy(learner.student, samples) < before


def test_a_state_is_all_that_a_pupil_goes_on_with(model: RunModel) -> None:
    samples = crossed(model, changed(8))
    first, second = pupil(model, "back", lr=0.02), pupil(model, "back", lr=0.02)
    first.learn(samples[:4], Replay(0))
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    first.learn(samples[4:], Replay(0))
    second.learn(samples[4:], Replay(0))
    assert first.state().keys() == second.state().keys()
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())


def test_numbers_that_are_none_teach_nothing(model: RunModel) -> None:
    learner, broken = pupil(model, "back"), Kept(2, torch.full((5, 16), 1e30))
    before = {name: tensor.clone() for name, tensor in learner.state().items()}
    samples = [Kept(2, torch.full((5, 16), float("nan"))), broken]
    assert learner.learn(samples, replay := Replay(10)) == 0
    assert len(replay) == learner.steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state().items())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """A network with other norms and another size of images."""
    import timm

    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return TeacherConfig(name="test_resnet", weights=str(path))


def test_another_model_teaches(model: RunModel, teacher: TeacherConfig) -> None:
    own = settings(norms="whole", teacher=teacher.model_dump())
    other = OtherModel(teacher, 10, SIDE, model.device)
    copy, samples = other.copy(), changed(4)
    learner = Pupil(None, OwnModel(model, heads(model), "whole"), copy, own, Key(0))
    said = other.say(samples)[0].detach()
    assert said.shape == (4, 10)
    assert learner.learn(samples, Replay(0)) == 4
    assert not torch.equal(copy.say(samples)[0], said)  # it has become surer
    assert torch.equal(other.say(samples)[0], said)  # and what it was copied from has not


def test_a_teacher_that_does_not_fit_is_refused(model: RunModel, teacher: TeacherConfig) -> None:
    for wrong in (
        {"name": "test_vit"}, {"weights": "/nowhere.pth"}, {"name": "no_such_model"}, {"args": {"no_such": 1}},
    ):  # fmt: skip
        with pytest.raises(RunError, match=r"--adapt: teacher: .* is not of .* with 10 classes") as error:
            OtherModel(teacher.model_copy(update=wrong), 10, SIDE, model.device)
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="with 11 classes"):
        OtherModel(teacher, 11, SIDE, model.device)
    with pytest.raises(SplitfedError, match="another model sees images, and with norms: back none is sent"):
        settings(norms="back", teacher=teacher.model_dump())


def test_a_model_without_layer_norms_has_nothing_that_learns(model: RunModel) -> None:
    class Bare(nn.Module):
        pass

    with pytest.raises(RunError, match="--adapt: norms are what learns, and the model's back has no LayerNorm"):
        learning(Parts(model.parts.front, Bare(), model.parts.tail), "whole")
