"""The ServerApp: reads a run folder, puts the server's parts together, and runs the rounds."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import rich.console
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from splitfed.channel import InlineListener
from splitfed.console import Console
from splitfed.control import FrontWire
from splitfed.curves import Curves
from splitfed.cut import Cut
from splitfed.data import load
from splitfed.observe import OBSERVERS
from splitfed.optimiser_state import write_optimiser
from splitfed.recover import recover
from splitfed.run import stored_scenario
from splitfed.seeds import Key
from splitfed.server.backs import POOLS, Trainer
from splitfed.server.model import Model
from splitfed.server.rounds import Rounds
from splitfed.server.split import SplitServer
from splitfed.wire_grid import WireGrid

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


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the run in the folder that `run_config` names."""
    folder = Path(str(context.run_config["run"]))
    scenario = stored_scenario(folder)
    key = Key(scenario.seed)
    data = load(scenario.data, scenario.model.image_size, scenario.federation.clients, key.at("data"))
    recovered = recover(folder, scenario.checkpoints.keep)
    model = Model(scenario, data)
    trainer = Trainer(model.back, scenario.training.server)
    if recovered.checkpoint:
        model.load(recovered.checkpoint.model)
        write_optimiser(trainer.optimiser, recovered.checkpoint.optimiser)
    cut = Cut(scenario.compression, model.geometry, model.device)
    pool = POOLS[scenario.federation.mode](trainer)
    split = SplitServer(pool, cut, recovered.ledger, key.at("server"), scenario.training.precision)
    wire = FrontWire(model.front.state_dict(), scenario.compression.front_weights)
    wire_grid = WireGrid(grid, wire, recovered.ledger, key.at("front_weights"))
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    with InlineListener(split) as listener, _warnings_to(folder / "log.txt") as log:
        observers = (*OBSERVERS.get(), Console(rich.console.Console(file=log)), Curves())
        Rounds(scenario, folder, recovered, model, wire_grid, split, strategy, listener.address, observers).run()
