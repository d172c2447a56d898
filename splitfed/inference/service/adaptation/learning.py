"""A step of adaptation (CEMA, arXiv 2402.17316): the teacher becomes surer of what it says, and the student learns from
it, each sample weighing the more the surer the model itself is of it."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from splitfed.inference.service.adaptation.kept import Kept, Owner, Replay
from splitfed.inference.service.adaptation.models import Learning
from splitfed.inference.service.adaptation.norms import numbers, take
from splitfed.inference.service.adaptation.settings import AdaptConfig
from splitfed.seeds import Key

_ENTROPY, _TEACHER = 3.0, 3.0  # how the terms weigh beside the pseudo-labels', as in the authors' code
_MOMENTUM = "momentum_buffer"


def _surely(logs: Tensor, high: float) -> tuple[Tensor, Tensor]:
    """Return of log probabilities `[B, C]` the entropy, and the weight exp(high ln C - entropy), each `[B]`."""
    entropy = -(logs.exp() * logs).sum(1)
    return entropy, (high * math.log(logs.shape[1]) - entropy.detach()).exp()


def teacher_loss(logs: Tensor, high: float) -> Tensor:
    """Return the mean of the weighted entropies of log probabilities `[B, C]`."""
    entropy, weight = _surely(logs, high)
    return (weight * entropy).mean()


def student_loss(logs: Tensor, taught: Tensor, high: float) -> Tensor:
    """Return what log probabilities `[B, C]` are to minimise, the teacher saying `taught` `[B, C]` of the same images:
    entropy, distance from the teacher and the teacher's likeliest class."""
    entropy, weight = _surely(logs, high)
    distance = (torch.xlogy(taught, taught) - taught * logs).sum(1)
    label = torch.nn.functional.nll_loss(logs, taught.argmax(1), reduction="none")
    return (weight * (_ENTROPY * entropy + _TEACHER * distance + label)).mean()


class Pupil:
    """What learns from the samples of one owner: a student, which is served, and its teacher. `steps` and `images` tell
    from how many it has learnt."""

    def __init__(self, owner: Owner, student: Learning, teacher: Learning, settings: AdaptConfig, key: Key) -> None:
        self.owner, self.student = owner, student
        self._teacher, self._settings, self._key = teacher, settings, key
        self._of_student = _sgd(student, settings.lr, settings.momentum)
        self._of_teacher = _sgd(teacher, settings.teacher_lr, settings.momentum)
        self.steps = self.images = 0

    def learn(self, samples: Sequence[Kept], replay: Replay) -> int:
        """Make a step by new samples and some of those before, and return how many these are. Returns 0, and leaves all
        as it is, where a number is not finite."""
        logs = self._teacher.say(samples)[-1]
        loss = teacher_loss(logs, self._settings.high)
        taught = logs.detach().exp()
        old = list(replay.draw(self.owner, self._settings.replayed, self._key.at("replay", self.steps)))
        known = torch.cat([taught, *(said[None].to(taught) for _, said in old)])
        said = self.student.say([*samples, *(sample for sample, _ in old)])
        losses = torch.stack([student_loss(one, known, self._settings.high) for one in said])
        if not all([_finite(self._of_teacher, loss), _finite(self._of_student, losses.mean())]):
            return 0
        self._of_teacher.step()
        self._of_student.step()
        replay.add(self.owner, samples, taught.cpu())
        self.steps, self.images = self.steps + 1, self.images + len(samples)
        return len(samples) + len(old)

    def state(self) -> dict[str, Tensor]:
        """Return all that it goes on with, by name."""
        found: dict[str, Tensor] = {}
        for role, model, optimiser in self._both():
            found |= {f"{role}/{name}": tensor for name, tensor in numbers(model.norms).items()}
            momentum = {
                name: optimiser.state[parameter][_MOMENTUM] for name, parameter in model.norms.items()
                if optimiser.state[parameter].get(_MOMENTUM) is not None
            }  # fmt: skip
            found |= {f"{role}_momentum/{name}": tensor for name, tensor in numbers(momentum).items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state. Raises KeyError and RuntimeError for one of another model."""
        for role, model, optimiser in self._both():
            take(model.norms, _below(state, f"{role}/"))
            momentum = _below(state, f"{role}_momentum/")
            for name, parameter in model.norms.items():
                if name in momentum:
                    optimiser.state[parameter][_MOMENTUM] = momentum[name].to(parameter)

    def _both(self) -> list[tuple[str, Learning, torch.optim.SGD]]:
        return [("student", self.student, self._of_student), ("teacher", self._teacher, self._of_teacher)]


def _sgd(model: Learning, lr: float, momentum: float) -> torch.optim.SGD:
    return torch.optim.SGD(list(model.norms.values()), lr=lr, momentum=momentum)


def _finite(optimiser: torch.optim.SGD, loss: Tensor) -> bool:
    """Find the gradient of a loss, and tell whether both are finite."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    return bool(torch.stack([loss.detach(), *(gradient.sum() for gradient in gradients)]).isfinite().all())


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
