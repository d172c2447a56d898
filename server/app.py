"""The ServerApp: reads a run folder, puts the server's parts together, and runs the rounds."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context, MessageType
from flwr.serverapp import Grid, ServerApp

from splitfed.engines.runtime import Runtime, runtime
from splitfed.federation.phases import Local
from splitfed.model.adaptive.alast import adaptives
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.folder import stored_scenario
from splitfed.run.ledger import Ledger, Row
from splitfed.run.observer import Observers
from splitfed.run.origin import load_data
from splitfed.run.recovery import recover
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Remote
from splitfed.seeds import Key
from splitfed.server.back.pools import POOLS, BackPool, Trainer
from splitfed.server.back.server import SplitServer
from splitfed.server.back.whole_model import Unheard, Unsplit
from splitfed.server.clock.traffic import Foreseen
from splitfed.server.cohort.align import AlignCall
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.cohort.claims import Claims
from splitfed.server.cohort.dispatch import Dispatch, Mail
from splitfed.server.cohort.evaluate import EvaluateCall
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.roster import Roster
from splitfed.server.cohort.train import TrainCall
from splitfed.server.cohort.yardstick import Yardstick
from splitfed.server.control.steering import Steering, steering
from splitfed.server.control.terms import ClientTerms
from splitfed.server.memory.alter import Alter
from splitfed.server.memory.memory import Memory
from splitfed.server.memory.store import Store
from splitfed.server.model import Model
from splitfed.server.outcome import Calls
from splitfed.server.records import RunRecords, StepProgress
from splitfed.server.rounds import Rounds
from splitfed.server.weights.exchange import WeightExchange, WholeWeights
from splitfed.server.weights.frozen import exchanges_of
from splitfed.server.weights.grid import WireGrid
from splitfed.server.weights.strategy import Aggregation
from splitfed.server.weights.uneven import ByFront
from splitfed.split.assembly import Cuts, numbers_of
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut
from splitfed.split.weights.wire import WeightWire
from splitfed.waiting import waiting
from splitfed.wire.channel import InlineListener, Listener
from splitfed.wire.messages import ALIGN, Question

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the run in the folder that `run_config` names."""
    folder = Path(str(context.run_config["run"]))
    scenario, lent = stored_scenario(folder), runtime()
    federation, key = scenario.federation, Key(scenario.seed)
    strategy = Aggregation(federation.strategy)
    with waiting("loading the data"):
        data = load_data(scenario)
    checkpoints = Checkpoints(folder, scenario.checkpoints.keep)
    recovered = recover(folder, checkpoints)
    observer, ledger = Observers(lent.observers), recovered.ledger
    progress = StepProgress(observer)

    with waiting("building the model and loading its weights"):
        model = Model(scenario, data)
    cuts = Cuts(scenario, model.geometry, model.device)
    said = dict[int, str]()  # the profile of each client of a deployment, as it said
    terms = ClientTerms(scenario, cuts if federation.splits else None, said)
    steers = steering(scenario, terms)
    exchanges = _exchanges(scenario, model, key.at("front_weights"), terms)
    lent.expect(_most_bytes(model))
    wire_grid = WireGrid(grid, exchanges, ledger, key.at("front_weights"))
    split: SplitServer | Unsplit = Unsplit(progress.step)
    listener: Listener = Unheard()
    if federation.splits:
        fronts = terms.front if scenario.uneven else None
        pool = POOLS[federation.mode](Trainer(model.back, scenario.training.server, fronts, scenario.training.head_lr))
        checkpoints.register(optimiser=pool.trainer)
        split = _split_server(scenario, model, pool, cuts, ledger, key.at("server"), progress)
        checkpoints.register(cache=split.caches)
        for budgets in adaptives(model.back):
            checkpoints.register(budgets=budgets)
        listener = _listener(scenario, split, folder.name, ledger.attempt, lent)

    with listener:
        # Clients on other machines may find the way to the split server barred: they try it first.
        channel = listener.invite(-1, 0).address if lent.waits else ""
        mail, refusals = Mail(wire_grid), Refusals()
        claims = Claims(scenario, [len(rows) for rows in data.partitions])
        yardstick = Yardstick(scenario, data)
        roster = Roster(
            mail, federation.clients, Question(tuple(data.classes), channel), waits=lent.waits, keys=lent.roster,
            joined=observer.joined, share=scenario.evaluation.held_out, refusals=refusals, claims=claims,
            yardstick=yardstick, known_profiles=tuple(federation.profiles), profiles=said,
        )  # fmt: skip
        dispatch = Dispatch(mail, roster.meanwhile, says=lent.waits)
        attendance = Attendance(scenario, folder)
        clock = attendance.clock
        clock.work.classes, clock.terms = len(data.classes), terms.of
        clock.foresee = Foreseen(scenario, model, cuts, key.at("foreseen"))
        ledger.hears = _hearing(*([clock.traffic.hear] if attendance.timed else []), steers.hear)
        align = AlignCall(scenario, dispatch, model, refusals)
        memory = _memory(scenario, model, split, folder, claims)
        train = TrainCall(
            scenario, dispatch, split, listener, exchanges[MessageType.TRAIN], strategy, claims, refusals, terms,
            memory.store if memory else None,
        )  # fmt: skip
        evaluate = EvaluateCall(
            scenario, dispatch, split, listener, exchanges[MessageType.EVALUATE], roster, attendance, align,
            refusals, terms,
        )  # fmt: skip
        checkpoints.register(
            model=model, strategy=strategy, weights=exchanges[MessageType.TRAIN], roster=roster, alignment=align,
            training=train, refusals=refusals, yardstick=yardstick, auxiliary=model.auxiliary,
        )  # fmt: skip
        if memory:
            checkpoints.register(memory=memory)
        if isinstance(steers, Steering):
            checkpoints.register(control=steers)
        if recovered.checkpoint:
            checkpoints.restore(recovered.checkpoint)
        records = RunRecords(scenario, folder, recovered, checkpoints, observer, yardstick, (*data.notes, *model.notes))
        calls = Calls(align, train, evaluate, progress, steers, memory)
        Rounds(scenario, model, wire_grid, roster, attendance, calls, records, lent, claims).run()


def _exchanges(scenario: Scenario, model: Model, key: Key, terms: ClientTerms) -> dict[str, WeightExchange]:
    """Return how the weights in messages of each type cross."""
    compression = scenario.compression
    packs = terms.packs, terms.packs_to_evaluate
    by_front = {cut: exchanges_of(scenario, held, key, *packs) for cut, held in model.held_by.items()}
    each_round, evaluation = by_front[scenario.cuts[1]]
    if scenario.uneven:
        each_round, evaluation = (
            ByFront({cut: both[kind] for cut, both in by_front.items()}, terms.front) for kind in (0, 1)
        )
    exchanges = {MessageType.TRAIN: each_round, MessageType.EVALUATE: evaluation}
    if compression.reducer.alignment():
        exchanges[ALIGN] = WholeWeights(*WeightWire.of_alignment(model.front, model.back.decoder, compression))
    return exchanges


def _most_bytes(model: Model) -> int:
    """Return what no message of a client exceeds: all that it trains, twice over, and what is said of it."""
    states = [model.client_part.state_dict(), model.front.state_dict(), model.back.decoder.state_dict()]
    if any(isinstance(phase, Local) for phase in model.scenario.phases):
        states.append(model.back.state_dict())  # an auxiliary net is all of it at most
    return 2 * sum(tensor.nbytes for state in states for tensor in state.values()) + (1 << 20)


def _split_server(
    scenario: Scenario, model: Model, pool: BackPool, cuts: Cuts, ledger: Ledger, key: Key, progress: StepProgress
) -> SplitServer:
    cut = cuts.plain
    at_once = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
    # In one process nobody is missing: whoever is slow computes.
    patience = scenario.federation.patience_seconds if isinstance(scenario.engine, Remote) else None
    return SplitServer(
        pool, cut, ledger, key, scenario.training.precision, progress.step, at_once=at_once, patience=patience,
        evaluation_cut=EvaluationCut(cut, model.front.encoder) if scenario.evaluation.held_out else None,
        clip=scenario.federation.clip, ahead=scenario.training.ahead, most_bytes=cuts.most_bytes,
        numbers=numbers_of(scenario, model.parts),
    )  # fmt: skip


def _memory(
    scenario: Scenario, model: Model, split: SplitServer | Unsplit, folder: Path, claims: Claims
) -> Memory | None:  # fmt: skip
    if (settings := scenario.memory) is None:
        return None
    assert isinstance(split, SplitServer)
    cut = Cut.of(scenario, model.geometry, model.device, once=True)
    store = Store(folder / "memory", cut, settings.disk, settings.store == "coded", scenario.checkpoints.keep)
    alter = Alter(settings, model.geometry.prefix, model.geometry.classes)
    return Memory(scenario, settings, store, split, cut.reducer, alter, lambda images: claims.to_store(images).steps)


def _hearing(*each: Callable[[list[Row]], None]) -> Callable[[list[Row]], None]:
    def hear(rows: list[Row]) -> None:
        for one in each:
            one(rows)

    return hear


def _listener(scenario: Scenario, split: SplitServer, run: str, attempt: int, lent: Runtime) -> Listener:
    engine, federation = scenario.engine, scenario.federation
    asked = scenario.evaluation.most_asked(federation.clients)
    if not isinstance(engine, Remote):
        return InlineListener(split)
    from splitfed.server.deployment.grpc_listener import GrpcListener

    return GrpcListener(
        split, host=lent.host, port=lent.port, tls=lent.tls, run=run, attempt=attempt,
        streams=max(federation.sampled, asked), deadline=engine.deadline, public=lent.public,
        ahead=scenario.training.ahead,
    )  # fmt: skip
