"""Many clients of a deployment in one process, run as a program: a thread for each, which speaks to the server as a
SuperNode does, with a key of its own, and answers with the ClientApp. Its argument is a `Crowd`, as JSON."""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore import heartbeat
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response
from network.liars import Answer, lying

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is in it, as numbers of clients, and what each of them that lies lies about; where they join (host:port), the
    folder that `splitfed certs` made, and one for what they keep."""

    address: str
    tls: str
    states: str
    clients: list[int]
    lies: dict[int, str]

    def text(self) -> str:
        """Return it as an argument."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Crowd":
        """Read an argument."""
        told = json.loads(text)
        return cls(**told | {"lies": {int(client): lie for client, lie in told["lies"].items()}})


def attend(crowd: Crowd, client: int, answer: Answer) -> None:
    """Be one client until the run is over."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    from splitfed.clients.deployment.join import Joining
    from splitfed.engines.deployment.tls import read_client
    from splitfed.wire.messages import GOODBYE

    files = read_client(Path(crowd.tls) / f"client-{client}")
    key = load_ssh_private_key(files.key.read_bytes(), None)
    own = Joining(client, own=False, threads=1, state=Path(crowd.states) / str(client))
    node_config = own.node_config(crowd.address.rpartition(":")[0], files.ca)
    contexts: dict[int, Context] = {}
    with http_request_response(crowd.address, False, str(files.ca), (key, key.public_key())) as node:
        number, receive, send, get_run, get_fab, pull, push, confirm = node
        while True:
            if (received := receive()) is None:
                time.sleep(_LOOK_SECONDS)
                continue
            announced, tree = received
            run = announced.metadata.run_id
            if run not in contexts:
                info = get_run(run)
                config = get_fused_config_from_fab(get_fab(info.fab_hash, run).content, info)
                contexts[run] = Context(run, number, node_config, RecordDict(), config)
            parts = [part.object_id for part in iterate_object_tree(tree)]
            contents = pull_objects(parts, lambda part, run=run: pull(run, part))
            message = inflate_object_from_contents(announced.metadata.message_id, contents)
            # The number has no setter.
            message.metadata.__dict__["_message_id"] = announced.metadata.message_id
            confirm(run, announced.metadata.message_id)
            reply = _answered(answer, message, contexts[run])
            reply.metadata.__dict__["_message_id"] = reply.object_id  # likewise
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            for part, content in get_all_nested_objects(reply).items():
                if part in wanted:
                    push(run, session, part, content.deflate())
            if message.metadata.message_type == GOODBYE:
                return


def _answered(answer: Answer, message: Message, context: Context) -> Message:
    try:
        return answer(message, context)
    except Exception as error:
        return Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)


def main(text: str) -> None:
    """Be all of a crowd."""
    from splitfed.clients.app import app

    crowd = Crowd.read(text)
    heartbeat.HEARTBEAT_DEFAULT_INTERVAL = 10  # as a client's SuperNode has it
    answers: dict[int, Callable] = lying(app, crowd.lies)

    def one(client: int) -> None:
        attend(crowd, client, answers.get(client, app))
        print(f"client {client} is done", flush=True)

    threads = [threading.Thread(target=one, args=(client,)) for client in crowd.clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
