"""What the server asks of its SuperLink: to know a client's key, to start a run, to stop one.

In this process rather than through the `flwr` command: no second process of three seconds, no configuration file, and
errors that are exceptions.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import Status
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from splitfed.engines.deployment.flower_tasks import connect
from splitfed.errors import RunError


class Control:
    """The SuperLink at `address` (host:port) that this process started, over TLS where `ca` is given."""

    def __init__(self, address: str, ca: Path | None, secret: bytes) -> None:
        self._client = connect(ControlHttpClient, address, ca, secret)

    def register(self, public_key: str) -> int:
        """Return the node id of a client's public key (the line of its .pub file), which is new or known already.

        Raises RunError for a key of another kind, and for one that was taken out of the run before."""
        try:
            key = load_ssh_public_key(public_key.encode())
        except ValueError as error:
            raise RunError(f"not a public key: {public_key.strip()[:60]!r} ({error})") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise RunError("a client's key must be an elliptic-curve key (ssh-keygen -t ecdsa -b 384)")
        packed = public_key_to_bytes(key)
        known = {node.public_key: node for node in self._client.ListNodes(ListNodesRequest()).nodes_info}
        if (node := known.get(packed)) is None:
            return self._client.RegisterNode(RegisterNodeRequest(public_key=packed)).node_id
        if node.status == "unregistered":
            raise RunError(
                f"{public_key.strip()[-60:]}: this client's key was taken out of the run before, and cannot come back: "
                f"make the client a new one with 'splitfed certs'"
            )
        return node.node_id

    def keep(self, nodes: Collection[int]) -> None:
        """Know no other nodes than these any more: those of keys that have been taken out."""
        for node in self._client.ListNodes(ListNodesRequest()).nodes_info:
            if node.node_id not in nodes and node.status != "unregistered":
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))

    def online(self) -> set[int]:
        """Return the ids of the nodes that are there."""
        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {node.node_id for node in nodes if node.status == "online"}

    def start_run(self, bundle: bytes) -> int:
        """Start a run of an app (see `splitfed.engines.deployment.flower_tasks`) and return its id."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        answer = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        if not answer.HasField("run_id"):
            raise RunError("the SuperLink started no run; its log says why")
        return answer.run_id

    def stop_run(self, run_id: int) -> None:
        """Stop a run, if it is not over yet."""
        if run_id in self.open_runs():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def open_runs(self) -> set[int]:
        """Return the runs that are not over: after a restart, those that nobody serves any more."""
        runs = self._client.ListRuns(ListRunsRequest()).run_dict
        return {run_id for run_id, run in runs.items() if run.status.status != Status.FINISHED}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
