"""The ServerApp: reads a run folder, puts the server's parts together, and runs the rounds."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from flwr.app import Context, MessageType
from flwr.serverapp import Grid, ServerApp

from splitfed.data.dataset import load
from splitfed.engines.runtime import Runtime, runtime
from splitfed.errors import RunError
from splitfed.model.optim import write_optimiser
from splitfed.reports.live.console import Console, in_file
from splitfed.reports.live.tensorboard import Curves
from splitfed.run.folder import stored_scenario
from splitfed.run.recovery import Recovered, recover
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Remote
from splitfed.seeds import Key
from splitfed.server.back.pools import POOLS, Trainer
from splitfed.server.back.server import SplitServer
from splitfed.server.back.whole_model import Unheard, Unsplit
from splitfed.server.model import Model
from splitfed.server.rounds import Rounds
from splitfed.server.weights.frozen import crossings_of
from splitfed.server.weights.grid import WireGrid
from splitfed.server.weights.strategy import Aggregation
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut
from splitfed.version import __version__
from splitfed.wire.channel import InlineListener, Listener
from splitfed.wire.grpc_settings import PROTOCOL

app = ServerApp()


@contextmanager
def _warnings_to(path: Path) -> Iterator[IO[str]]:
    """Open a log for appending; what this package warns of is written there too, as on the terminal."""
    logger = logging.getLogger("splitfed")
    with open(path, "a") as file:
        handlers = logging.StreamHandler(file), logging.StreamHandler()
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
            logger.addHandler(handler)
        try:
            yield file
        finally:
            for handler in handlers:
                logger.removeHandler(handler)


def _split_server(scenario: Scenario, model: Model, recovered: Recovered, key: Key) -> SplitServer:
    trainer = Trainer(model.back, scenario.training.server)
    if recovered.checkpoint:
        write_optimiser(trainer.optimiser, recovered.checkpoint.optimiser)
    cut = Cut.of(scenario, model.geometry, model.device)
    pool = POOLS[scenario.federation.mode](trainer)
    at_once = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
    # In one process nobody is missing: whoever is slow computes.
    patience = scenario.federation.patience_seconds if isinstance(scenario.engine, Remote) else None
    return SplitServer(
        pool, cut, recovered.ledger, key.at("server"), scenario.training.precision, at_once=at_once, patience=patience,
        looks=EvaluationCut(cut, model.front.encoder) if scenario.evaluation.held_out else None,
    )  # fmt: skip


def _listener(scenario: Scenario, split: SplitServer, run: str, attempt: int, lent: Runtime) -> Listener:
    engine, federation = scenario.engine, scenario.federation
    asked = scenario.evaluation.most_asked(federation.clients)
    if not isinstance(engine, Remote):
        return InlineListener(split)
    from splitfed.server.deployment.grpc_listener import GrpcListener

    return GrpcListener(
        split, host=lent.host, port=lent.port, tls=lent.tls, run=run, attempt=attempt,
        streams=max(federation.sampled, asked), deadline=engine.deadline, public=lent.public,
    )  # fmt: skip


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the run in the folder that `run_config` names."""
    folder = Path(str(context.run_config["run"]))
    scenario = stored_scenario(folder)
    strategy = Aggregation(scenario.federation.strategy)
    key = Key(scenario.seed)
    data = load(scenario.data, scenario.model.image_size, scenario.federation.clients, key.at("data"))
    recovered = recover(folder, scenario.checkpoints.keep)
    model = Model(scenario, data)
    state = recovered.checkpoint.held if recovered.checkpoint else None
    crossing, asking = crossings_of(model.client_part, scenario.compression, key.at("front_weights"), state)
    frozen = {name: tensor.clone() for name, tensor in model.client_part.frozen().items()}
    if recovered.checkpoint:
        model.load(recovered.checkpoint.model)
        strategy.load(recovered.checkpoint.strategy)
        if any(not tensor.equal(frozen[name]) for name, tensor in model.client_part.frozen().items()):
            raise RunError(
                "model.adapter: what is frozen of the front is not what this run began with, and clients have that: "
                "bring the file of model.weights back as it was, or start a new run"
            )
    wire_grid = WireGrid(grid, crossing, recovered.ledger, key.at("front_weights"))
    wire_grid.others[MessageType.EVALUATE] = asking
    lent = runtime()
    split: SplitServer | Unsplit = Unsplit()
    listener: Listener = Unheard()
    if scenario.federation.splits:
        split = _split_server(scenario, model, recovered, key)
        listener = _listener(scenario, split, folder.name, recovered.ledger.attempt, lent)
    with listener, _warnings_to(folder / "log.txt") as log:
        question = {"protocol": PROTOCOL, "version": __version__, "classes": data.classes, "channel": "", "token": ""}
        if lent.waits:  # clients on other machines may find the way to the split server barred: they try it first
            question["channel"] = listener.invite(-1, 0).address
        observers = (*lent.observers, Console(in_file(log)), Curves())
        Rounds(
            scenario, folder, recovered, model, wire_grid, split, strategy, listener, lent, question, observers
        ).run()
