"""How many nodes a SuperLink keeps where anybody may make them."""

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from splitfed.server.deployment.nodes import has_room

MOST = 5


@pytest.fixture
def state() -> SqlLinkState:
    made = SqlLinkState(":memory:", NoOpFederationManager(), ObjectStoreFactory().store())
    made.initialize()
    return made


def come(state: SqlLinkState, name: str, *, stays: bool = True) -> int:
    """Make a node, which is there or at once gone."""
    assert has_room(state, MOST)
    node = state.create_node("nobody", "nobody", name.encode(), 0)
    assert state.activate_node(node, 30)
    if not stays:
        assert state.deactivate_node(node)
    return node


def known(state: SqlLinkState) -> set[str]:
    return {node.public_key.decode() for node in state.get_node_info()}


def test_who_is_gone_makes_room_the_longest_gone_first(state):
    for name in "abc":
        come(state, name, stays=False)
    come(state, "d")
    come(state, "e")
    come(state, "f")
    assert known(state) == set("bcdef")
    come(state, "g")
    come(state, "h")
    assert known(state) == set("defgh")


def test_where_all_are_there_nobody_is_taken_until_one_goes(state):
    nodes = [come(state, name) for name in "abcde"]
    assert not has_room(state, MOST)
    assert known(state) == set("abcde")
    state.deactivate_node(nodes[2])
    come(state, "f")
    assert known(state) == set("abdef")


def test_who_leaves_for_good_leaves_nothing(state):
    for number in range(20):
        state.delete_node("nobody", come(state, str(number)))
    assert len(known(state)) <= 1


def test_a_node_that_is_only_made_is_forgotten_too(state):
    come(state, "client")
    for number in range(20):
        assert has_room(state, MOST)
        state.create_node("nobody", "nobody", str(number).encode(), 0)
    assert known(state) == {"client", "16", "17", "18", "19"}
