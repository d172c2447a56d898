"""How many nodes a SuperLink keeps where there are no keys: anybody may make one there, with a request of its own.

Each of them takes a row of the database, is asked who it is, and may send as much as a client. A node that is gone
makes room for another; who comes when all are there is refused until one of them goes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

# Beside those of the clients: some are left by clients that were killed.
SPARE = 256


def counted(create: Callable[..., int], most: int) -> Callable[..., int]:
    """Return the method of a state of Flower's that makes a node, so that it makes at most so many. For one more it
    raises ValueError, which Flower answers as it does a key that is taken."""

    def create_node(state: "SqlLinkState", *node: Any, **more: Any) -> int:
        if not has_room(state, most):
            raise ValueError("there are too many nodes")
        return create(state, *node, **more)

    return create_node


def has_room(state: "SqlLinkState", most: int) -> bool:
    """Tell whether one more node makes at most so many; those that have left for good, and of the others that are gone
    those that have been gone longest, are forgotten for it."""
    from flwr.supercore.constant import NodeStatus
    from flwr.supercore.state.schema.linkstate_models import Node
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import delete

    nodes = state.get_node_info()
    forgotten = [node for node in nodes if node.status == NodeStatus.UNREGISTERED]
    gone = [node for node in nodes if node.status in (NodeStatus.OFFLINE, NodeStatus.REGISTERED)]
    gone.sort(key=lambda node: max(node.registered_at, node.last_deactivated_at or ""))
    surplus = len(nodes) - len(forgotten) + 1 - most
    forgotten += gone[: max(0, surplus)]
    if forgotten:
        numbers = [uint64_to_int64(node.node_id) for node in forgotten]
        with state.session() as session:
            session.execute(delete(Node).where(Node.node_id.in_(numbers)))
    return surplus <= len(gone)
