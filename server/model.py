"""The whole model as the server holds it: what is aggregated of the clients, the back, and how well they do."""

from flwr.app import Array, ArrayRecord
from torch import Tensor

from splitfed.assembly import assemble
from splitfed.batches import count_batches
from splitfed.data import FederatedData
from splitfed.held import Held
from splitfed.models import pixel_stats
from splitfed.optim import pick_device
from splitfed.parts import whole_state
from splitfed.scenario import Scenario
from splitfed.server.evaluate import evaluate


class Model:
    """The parts of a scenario's model on the server's device, with the reducer's own layers in them; `held` is what
    each client holds of them. Raises ModelError where the model cannot be built or the reducer does not go with it."""

    def __init__(self, scenario: Scenario, data: FederatedData) -> None:
        self.scenario, self.data = scenario, data
        self.device = pick_device(scenario.training.server.device)
        self.parts = assemble(scenario, len(data.classes)).to(self.device)
        self.front, self.back = self.parts.front, self.parts.back.train()
        self.held = Held.of(scenario, self.parts)
        self.geometry = self.front.geometry(scenario.training.batch_size, len(data.classes))
        self.mean, self.std = pixel_stats(scenario.model)

    def state(self) -> dict[str, Tensor]:
        """Return all weights under timm's names."""
        return whole_state(*self.parts)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over all weights, by copy."""
        for part in self.parts:
            part.load_state_dict({name: state[name] for name in part.state_dict()})

    def arrays(self) -> ArrayRecord:
        """Return the weights that clients are handed out, for a message of Flower's."""
        weights = self.held.travelling()
        return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in weights.items()})

    def load_held(self, weights: dict[str, Tensor]) -> None:
        """Take over what came back from the clients, by copy."""
        self.held.load_travelling(weights)

    def steps(self, examples: list[int]) -> int:
        """Return how often clients of so many examples are heard of in a round: with each mini-batch, or once
        each where none crosses."""
        if not self.scenario.federation.splits:
            return len(examples)
        federation, batch = self.scenario.federation, self.scenario.training.batch_size
        return max(1, sum(count_batches(n, batch, federation.local_steps, federation.local_epochs) for n in examples))

    def _evaluate(self, images) -> tuple[float, float]:
        training = self.scenario.training
        return evaluate(
            self.parts, images, training.eval_batch_size, self.mean, self.std, self.device,
            training.precision, self.scenario.data.workers,
        )  # fmt: skip

    def validate(self) -> tuple[float, float]:
        """Return loss and accuracy on the validation split."""
        return self._evaluate(self.data.validation)

    def test(self) -> tuple[float, float]:
        """Return loss and accuracy on the test split; read it once, at the end."""
        return self._evaluate(self.data.test)
