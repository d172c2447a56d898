"""A client that is there, gives signs of life, and never answers: a deployment with a deadline goes on without it."""

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord
from helpers import small
from torch import nn

from splitfed.server.back.whole_model import Unheard, Unsplit
from splitfed.server.cohort.align import AlignCall
from splitfed.server.cohort.dispatch import Dispatch, after
from splitfed.server.cohort.evaluate import EvaluateCall
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.train import Cohort
from splitfed.server.control.terms import ClientTerms

pytestmark = pytest.mark.usefixtures("identity")

DEPLOYED = ["engine={kind: deployment, threads: 1}", "federation.deadline=0.2"]


class Silence:
    """A server's mail to nodes that are there, of which none answers."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.forgotten: list[str] = []
        self.grid = SimpleNamespace(get_node_ids=lambda: [7, 8])

    def send(self, message: Any) -> str:
        self.sent.append(f"m{len(self.sent)}")
        return self.sent[-1]

    def take(self, numbers: set[str]) -> dict[str, Any]:
        return {}

    def forget(self, number: str) -> None:
        self.forgotten.append(number)

    def node(self, number: str) -> int:
        return 7


def test_an_evaluation_ends_at_the_deadline(caplog):
    scenario, mail = small("federation.mode=fl", "training.server={}", "evaluation.held_out=0.2", *DEPLOYED), Silence()
    roster = SimpleNamespace(online=lambda: {0, 1}, nodes={0: 7, 1: 8}, held_out={0: 4, 1: 4})
    attendance = SimpleNamespace(present=lambda round, there: there)
    exchange = SimpleNamespace(close=lambda taken: None, forget=lambda client: None)
    phase = EvaluateCall(
        scenario, Dispatch(mail), Unsplit(lambda *_: None), Unheard(), exchange, roster, attendance,  # type: ignore[arg-type]
        SimpleNamespace(ready=lambda client: True), Refusals(), ClientTerms(scenario, None, {}),  # type: ignore[arg-type]
    )  # fmt: skip
    assert phase.run(3, ArrayRecord()) == []
    assert sorted(mail.forgotten) == mail.sent == ["m0", "m1"]
    assert all(f"round 3: client {client} is lost to its evaluation" in caplog.text for client in (0, 1))


def test_an_alignment_ends_at_the_deadline(caplog):
    model, mail = SimpleNamespace(front=nn.Linear(2, 2), back=SimpleNamespace(decoder=nn.Identity())), Silence()
    phase = AlignCall(small(*DEPLOYED), Dispatch(mail), model, Refusals())  # type: ignore[arg-type]
    phase.fitting = SimpleNamespace(epochs=1)  # type: ignore[assignment]
    assert phase.run(1, Cohort({0: 4, 1: 4}, {0: 7, 1: 8}, {0: 4, 1: 4})) == {0: None, 1: None}
    assert sorted(mail.forgotten) == mail.sent == ["m0", "m1"]
    assert "round 1: client 1 was not aligned: it is lost" in caplog.text


def test_no_deadline_never_comes():
    assert not after(None)()
    assert not after(1e9)()
    assert after(-1.0)()
