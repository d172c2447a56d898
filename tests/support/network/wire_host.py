"""A host of a measured wire, run as a program: `server` is a split server of a round for each carrier, `client` one
client of it. Their input and output are lines of JSON."""

import json
import sys
from pathlib import Path

from splitfed.run.ledger import Ledger
from splitfed.scenario import Scenario

CARRIERS = {1: "plain", 2: "tls"}  # by round


def serve(task: dict) -> None:
    """Be the split server of a round for each carrier; a line of input ends a round."""
    from splitfed.data.dataset import load
    from splitfed.engines.deployment.tls import read_server
    from splitfed.seeds import Key
    from splitfed.server.back.pools import POOLS, Trainer
    from splitfed.server.back.server import SplitServer
    from splitfed.server.deployment.grpc_listener import GrpcListener
    from splitfed.server.model import Model
    from splitfed.split.cut import Cut

    scenario, folder = Scenario.parse(task["scenario"]), Path(task["folder"])
    key, federation = Key(scenario.seed), scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    model = Model(scenario, data)
    pool = POOLS[federation.mode](Trainer(model.back, scenario.training.server))
    ledger = Ledger(folder, attempt=1)
    cut = Cut(scenario.compression, model.geometry, model.device)
    split = SplitServer(pool, cut, ledger, key.at("server"), scenario.training.precision)
    for round, carrier in CARRIERS.items():
        split.start_round(round, 1e-3, {client: len(rows) for client, rows in enumerate(data.partitions)})
        tls = read_server(folder / "tls").tls if carrier == "tls" else None
        place = {"host": task["host"], "port": 0, "tls": tls, "run": "wire", "attempt": 1, "streams": 2}
        with GrpcListener(split, **place, deadline=60.0) as listener:
            invitations = [listener.invite(client, round) for client in range(federation.clients)]
            print(json.dumps([[invitation.address, invitation.token] for invitation in invitations]), flush=True)
            sys.stdin.readline()
        split.end_round()
        ledger.commit()
        ledger.forget_open()


def train(task: dict, client: int) -> None:
    """Be one client; a line of input is an invitation to a round."""
    from splitfed.clients.connect import Reach
    from splitfed.clients.settings import Settings
    from splitfed.clients.worker import Worker
    from splitfed.engines.deployment.tls import read_client
    from splitfed.wire.channel import Invitation

    folder, worker = Path(task["folder"]), Worker(Scenario.parse(task["scenario"]), Settings(client))
    weights = {name: tensor.clone() for name, tensor in worker.front.state_dict().items()}
    for carrier in CARRIERS.values():
        round, address, token = json.loads(sys.stdin.readline())
        ca = read_client(folder / "tls" / f"client-{client}").ca if carrier == "tls" else None
        reach = Reach(task["host"], ca, deadline=60.0)
        worker.train(client, round, weights, Invitation(address, token), reach, folder)
        print("done", flush=True)


if __name__ == "__main__":
    *_, given = sys.argv
    if sys.argv[1] == "server":
        serve(json.loads(given))
    else:
        train(json.loads(given), int(sys.argv[2]))
