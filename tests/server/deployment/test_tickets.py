"""Tokens: each admits one client to one round of one attempt, for a time, and tells why another does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.errors import WireError
from splitfed.server.deployment.tickets import Ticket, Tickets


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(client=st.integers(0, 10**6), round=st.integers(0, 10**6), attempt=st.integers(1, 1000))
def test_a_token_admits_whom_it_was_issued_to(client, round, attempt):
    tickets = Tickets("run", attempt)
    assert tickets.check(tickets.issue(client, round)) == Ticket(client, round)


def test_a_token_expires():
    clock = Clock()
    tickets = Tickets("run", 1, lifetime=60, clock=clock)
    token = tickets.issue(3, 2)
    clock.now += 60
    assert tickets.check(token) == Ticket(3, 2)
    clock.now += 1
    with pytest.raises(WireError, match="of client 3 for round 2 has expired"):
        tickets.check(token)


def test_a_token_of_another_run_attempt_or_process_is_told():
    tickets = Tickets("run", 2)
    for other, reason in (
        (Tickets("another", 2), "another run"),
        (Tickets("run", 1), "attempt 1 of the run, which is now at 2"),
        (Tickets("run", 2), "forged"),
    ):
        with pytest.raises(WireError, match=reason):
            tickets.check(other.issue(3, 2))


@pytest.mark.parametrize("field", range(6))
def test_no_field_can_be_exchanged(field):
    """Also not for another that the server itself has issued: each covers all."""
    clock = Clock()
    tickets = Tickets("run", 1, clock=clock)
    token = tickets.issue(3, 2).split(".")
    clock.now += 5
    others = [*tickets.issue(4, 7).split("."), "1" * 8, "2", "9" * 12, "A" * 43]
    for other in others:
        changed = [*token[:field], other, *token[field + 1 :]]
        if changed != token:
            with pytest.raises(WireError):
                tickets.check(".".join(changed))


def test_equal_numbers_written_otherwise_are_forged():
    tickets = Tickets("run", 1)
    mark, attempt, *rest = tickets.issue(3, 2).split(".")
    with pytest.raises(WireError, match="forged"):
        tickets.check(".".join([mark, f"0{attempt}", *rest]))


@given(text=st.text(max_size=120) | st.text("0123456789abcdef.-_٣", max_size=120))
@settings(max_examples=200)
def test_any_other_text_is_refused(text):
    with pytest.raises(WireError):
        Tickets("run", 1).check(text)


def test_a_token_does_not_tell_the_secret_or_the_run():
    assert "my-run" not in Tickets("my-run", 1).issue(0, 1)
    assert Tickets("run", 1).issue(0, 1) != Tickets("run", 1).issue(0, 1)
