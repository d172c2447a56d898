"""Training that diverges ends with a line that says where, and which learning rate to lower, in every mode."""

import re

import pytest
import torch
from helpers import ADC, small

from splitfed import simulate
from splitfed.errors import CodecError, Diverged
from splitfed.seeds import Key
from splitfed.split.cut import check_finite
from splitfed.split.weights.wire import WeightWire

HUGE = "{kind: sgd, lr: 1e30}"
CLIENTS = "training.client.optimiser.lr"
EITHER = f"{CLIENTS} or training.server.optimiser.lr"


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    "changes",
    [
        ["federation.mode=sl"],
        ["federation.mode=sfl-v1"],
        ["federation.mode=sfl-v2", *ADC],
        ["federation.mode=psl"],
        ["federation.labels=private", "model.tail=0"],
    ],
    ids=lambda changes: changes[0],
)
def test_in_every_mode(changes, side, tmp_path):
    with pytest.raises(Diverged) as caught:
        simulate(small(*changes, f"training.{side}.optimiser={HUGE}"), runs=tmp_path)
    assert re.fullmatch(rf"round 1, client \d, step \d: the training diverges, .* NaN or infinite: lower {EITHER}",
                        str(caught.value))  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2])
def test_of_a_whole_model(steps, tmp_path):
    """After a single step the loss is still that of the first weights: what was learnt is told by the next look."""
    scenario = small(
        "federation.mode=fl", "training.server={}", f"training.client.optimiser={HUGE}", "federation.local_epochs=null",
        f"federation.local_steps={steps}",
    )  # fmt: skip
    with pytest.raises(Diverged) as caught:
        simulate(scenario, runs=tmp_path)
    text = str(caught.value)
    if steps == 2:
        assert re.fullmatch(rf"round 1, client 0, step 2: .*the loss is NaN or infinite: lower {CLIENTS}", text)
    else:
        assert re.match(r"round 1(, client 0)?: the training diverges", text)


def test_what_clients_hold_out_diverges_too(tmp_path):
    changes = ["federation.local_epochs=null", "federation.local_steps=1", "evaluation.held_out=0.2"]
    scenario = small(*changes, f"training.server.optimiser={HUGE}", "federation.cohort=1")
    with pytest.raises(Diverged, match=r"^the evaluation of round 1, client \d, step 1: the training diverges"):
        simulate(scenario, runs=tmp_path)


def test_what_is_finite_but_does_not_fit_is_the_codecs(tmp_path):
    wire = WeightWire({"w": torch.zeros(2, 3)}, small("compression.front_weights.codec=float16").compression)
    with pytest.raises(CodecError, match=r"^front_weights at round 3, client 4 cannot be sent: .*float16"):
        wire.pack({"w": torch.full((2, 3), 1e6)}, Key(0), 3, 4)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(
            Diverged, match=rf"^round 3, client 4: .*front_weights is NaN or infinite: lower {CLIENTS}$"
        ):
            wire.pack({"w": torch.tensor([[1.0, 2, bad]] * 2)}, Key(0), 3, 4)
        with pytest.raises(Diverged):
            check_finite("the loss", torch.tensor(bad), "here")
    check_finite("the loss", torch.tensor(1e38), "here")
