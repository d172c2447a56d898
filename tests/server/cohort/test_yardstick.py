"""What the server takes the clients' images to weigh: what it sees itself, or what they say, within bounds."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import small

from splitfed.server.cohort.claims import MOST_TIMES
from splitfed.server.cohort.yardstick import Yardstick

DEPLOYED = "engine={kind: deployment, threads: 1}"


class Data(SimpleNamespace):
    """Images that weigh as many bytes as their row says; each client is dealt one."""

    @property
    def train(self) -> "Data":
        return self

    @property
    def images_bytes(self) -> int:
        return int(torch.cat(self.partitions).sum())

    def stored_bytes(self, rows: torch.Tensor) -> int:
        return int(rows.sum())


def data(*weights: int) -> Data:
    return Data(partitions=[torch.tensor([weight]) for weight in weights])


def deployed(*dealt: int, **told: int | None) -> Yardstick:
    made = Yardstick(small(f"federation.clients={len(dealt)}", DEPLOYED), data(*dealt))
    for client, weight in told.items():
        made.tell(int(client.removeprefix("c")), weight)
    return made


def test_a_simulation_is_weighed_by_the_server_and_whatever_clients_say() -> None:
    made = Yardstick(small(), data(100, 20, 3))
    made.tell(0, 10_000_000)
    assert (made.bytes, made.reported) == (123, False)


def test_clients_of_a_deployment_are_believed_and_counted_as_they_join() -> None:
    made = deployed(1, 1, 1)
    assert (made.bytes, made.reported) == (None, True)
    made.tell(2, 5_000)
    assert made.bytes == 5_000
    made.tell(0, 700)
    made.tell(1, 0)  # it holds no images
    assert made.bytes == 5_700


def test_what_a_client_says_first_counts_for_the_whole_run() -> None:
    made = deployed(1, 1, c0=500, c1=400)
    made.tell(0, 4_000)
    again = deployed(1, 1)
    again.load_state_dict(json.loads(json.dumps(made.state_dict())))
    again.tell(1, 1)
    assert made.bytes == again.bytes == 900


def test_nobody_is_believed_more_than_ten_times_the_middle_client() -> None:
    assert deployed(1, 1, 1, c0=100, c1=90, c2=10**15).bytes == 190 + MOST_TIMES * 100
    assert deployed(1, 1, c0=100, c1=10**15).bytes == 100 + MOST_TIMES * 100
    # A client without images is no measure of others, nor is one that says nothing.
    assert deployed(1, 1, 1, 1, c0=100, c1=90, c2=0, c3=None).bytes == 190


def test_a_share_that_the_server_has_too_is_believed_whatever_it_weighs() -> None:
    assert deployed(1, 1, 90_000, c0=10, c1=10, c2=90_000).bytes == 90_020
    assert deployed(1, 1, 90_000, c0=10, c1=10, c2=90_001).bytes == 20 + MOST_TIMES * 10


@pytest.mark.parametrize("engine", [[], [DEPLOYED]])
def test_a_run_that_goes_on_measures_by_what_it_began_with(engine: list[str]) -> None:
    """The same images may have been packed anew since, and clients may be away."""
    one = Yardstick(small(*engine), data(100, 20, 3))
    one.tell(0, 55)
    two = Yardstick(small(*engine), data(90, 10, 1))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.bytes == one.bytes == (55 if engine else 123)
    assert two.state_dict() == one.state_dict()
