"""The rounds of a run: sample clients, let them train, aggregate, evaluate, write down, and stop in time.

The same loop serves every engine: which grid carries the messages, and what listens for mini-batches, is decided
outside.
"""

import os
import time
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from splitfed.checkpoint import Checkpoints, Progress
from splitfed.errors import RunError
from splitfed.metrics import Metrics
from splitfed.observe import Observer, Started
from splitfed.optimiser_state import read_optimiser
from splitfed.recover import Recovered, wasted_bytes
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.model import Model
from splitfed.server.replies import checked
from splitfed.server.split import SplitServer
from splitfed.summary import Summary
from splitfed.wire_grid import CohortGrid, WireGrid
from splitfed.wire_names import CONFIG


class Rounds:
    """A run in progress: the model, the bytes so far, and where it all is written."""

    def __init__(
        self, scenario: Scenario, folder: Path, recovered: Recovered, model: Model, grid: WireGrid,
        split: SplitServer, strategy: Strategy, address: str, observers: tuple[Observer, ...],
    ) -> None:  # fmt: skip
        self.scenario, self.folder, self.model, self.grid, self.split = scenario, folder, model, grid, split
        self.strategy, self.address, self.observers = strategy, address, observers
        self.ledger, self.key = recovered.ledger, Key(scenario.seed)
        self.checkpoints = Checkpoints(folder, scenario.checkpoints.keep)
        self.history = recovered.history
        progress = recovered.checkpoint.progress if recovered.checkpoint else None
        self.finished = progress.round if progress else -1
        self.examples = progress.examples if progress else []
        self.before = progress.seconds if progress else 0.0
        self.began = time.monotonic()
        self.nodes: dict[int, int] = {}
        split.on_step = self._on_step

    def run(self) -> None:
        """Run to the end, or until the user interrupts: then the open round is dropped and KeyboardInterrupt raised."""
        try:
            self._run()
        except BaseException as error:
            self.ledger.waste()
            if isinstance(error, KeyboardInterrupt):
                for observer in self.observers:
                    observer.interrupted(self.folder, max(0, self.finished), self.ledger.finished)
            raise
        finally:
            for observer in self.observers:
                observer.close()

    def _run(self) -> None:
        self._prepare()
        limit = self.scenario.budget.limit(sum(self.examples), self.model.geometry)
        info = Started(
            self.scenario.name, self.folder, self.scenario.federation.rounds, self.scenario.engine.kind,
            self.finished, self.history, limit,
        )  # fmt: skip
        for observer in self.observers:
            observer.started(info)
        while self._goes_on(self.finished, limit):
            self._round(self.finished + 1, limit)
        self._finish(limit)

    def _goes_on(self, round: int, limit: int | None) -> bool:
        """Decide whether another round starts after this one, by what it and those before it have sent."""
        spent = self.ledger.finished.cut.sent + self.ledger.open.cut.sent
        return round < self.scenario.federation.rounds and (limit is None or spent < limit)

    def _prepare(self) -> None:
        """Learn which node is which client; a new run then writes the checkpoint that round 1 starts from."""
        self.grid.open_round = 0
        examples = self._identify()
        if self.finished >= 0:
            if examples != self.examples:
                raise RunError(f"{self.folder}: the clients' data changed since the checkpoint; start a new run")
            self.ledger.waste()  # round 0 was counted by the attempt that wrote the checkpoint
            return
        self.examples = examples
        self.ledger.commit()
        self._checkpoint(0)

    def _identify(self) -> list[int]:
        """Ask every node for its partition id and the number of its examples."""
        queries = [Message(RecordDict(), node, "query") for node in self.grid.get_node_ids()]
        examples: dict[int, int] = {}
        for reply in self.grid.send_and_receive(queries):
            if reply.has_error():
                raise RunError(f"node {reply.metadata.src_node_id} does not answer: {reply.error.reason}")
            answer = reply.content.config_records[CONFIG]
            client = int(answer["partition-id"])  # type: ignore[arg-type]
            self.nodes[client] = reply.metadata.src_node_id
            examples[client] = int(answer["num-examples"])  # type: ignore[arg-type]
        if sorted(examples) != list(range(self.scenario.federation.clients)):
            raise RunError(f"the clients that answered are {sorted(examples)}, not 0 to {len(examples) - 1}")
        self.grid.clients = {node: client for client, node in self.nodes.items()}
        return [examples[client] for client in sorted(examples)]

    def _cohort(self, round: int) -> list[int]:
        """Sample the round's clients; `sfl-v2` messages them one after another in this order."""
        clients = self.scenario.federation.clients
        order = torch.randperm(clients, generator=self.key.at("cohort", round).generator())
        drawn = order[: self.scenario.federation.cohort_size].tolist()
        return drawn if self.scenario.federation.mode == "sfl-v2" else sorted(drawn)

    def _round(self, round: int, limit: int | None) -> None:
        training, rounds = self.scenario.training, self.scenario.federation.rounds
        cohort = self._cohort(round)
        self._steps_done, self._steps_due = 0, self.model.steps([self.examples[client] for client in cohort])
        self.grid.open_round = round
        client_lr, server_lr = training.client.lr(round, rounds), training.server.lr(round, rounds)
        self.split.start_round(round, server_lr, {client: self.examples[client] for client in cohort})
        replies = self._train(round, cohort)
        self.split.end_round()
        arrays, metrics = self.strategy.aggregate_train(round, replies)
        if arrays is None or metrics is None:
            reasons = {str(reply.error.reason) for reply in replies if reply.has_error()}
            raise RunError(f"round {round}: no client finished: {'; '.join(sorted(reasons)) or 'no replies'}")
        self.model.load_front({name: torch.from_numpy(array.numpy()).float() for name, array in arrays.items()})
        looked = round % training.evaluate_every == 0 or not self._goes_on(round, limit)
        # Evaluated while the round is still open: whoever interrupts here drops the whole round.
        eval_loss, eval_accuracy = self.model.validate() if looked else (None, None)
        sent = self.ledger.commit()
        finished = self.ledger.finished
        row = Metrics(
            round, float(metrics["train-loss"]), eval_loss, eval_accuracy,  # type: ignore[arg-type]
            finished.cut.sent, finished.total.sent, self._seconds(), finished.cut.raw, finished.total.raw,
            sum(self.examples[client] for client in cohort), len(cohort), client_lr, server_lr,
        )  # fmt: skip
        with open(self.folder / "metrics.csv", "a") as file:
            file.write(row.line())
            file.flush()
            os.fsync(file.fileno())
        self.history.append((row, sent))
        self._checkpoint(round)
        for observer in self.observers:
            observer.round(row, sent, finished)

    def _train(self, round: int, cohort: list[int]) -> list[Message]:
        config = ConfigRecord({"channel": self.address})
        chosen: Grid = CohortGrid([self.nodes[client] for client in cohort])  # type: ignore[assignment]
        messages = list(self.strategy.configure_train(round, self._arrays(), config, chosen))
        place = {self.nodes[client]: number for number, client in enumerate(cohort)}
        messages.sort(key=lambda message: place[message.metadata.dst_node_id])
        # One shared back is trained by one client at a time: the order is made here, by whom the server messages next.
        waves = [[m] for m in messages] if self.scenario.federation.mode == "sfl-v2" else [messages]
        replies = [reply for wave in waves for reply in self.grid.send_and_receive(wave)]
        by_client = sorted(((self.grid.clients[r.metadata.src_node_id], r) for r in replies), key=lambda pair: pair[0])
        return [checked(reply, round, client, self.examples[client]) for client, reply in by_client]

    def _arrays(self) -> ArrayRecord:
        weights = self.model.front.state_dict()
        return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in weights.items()})

    def _on_step(self, round: int, client: int) -> None:
        self._steps_done += 1
        for observer in self.observers:
            observer.progress(round, min(1.0, self._steps_done / self._steps_due))

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _checkpoint(self, round: int) -> None:
        ledger, metrics = ((self.folder / name).stat().st_size for name in ("ledger.csv", "metrics.csv"))
        progress = Progress(round, self.ledger.attempt, self._seconds(), ledger, metrics, self.examples)
        optimiser = read_optimiser(self.split.pool.trainer.optimiser)
        self.checkpoints.save(self.model.state(), optimiser, progress)
        self.finished = round
        self.ledger.forget_open()

    def _finish(self, limit: int | None) -> None:
        """Read the test split, once, and write the summary."""
        loss, accuracy = self.model.test()
        totals, wasted = self.ledger.finished, wasted_bytes(self.folder)
        total = totals.total.sent + wasted
        summary = Summary(
            scenario=self.scenario.name, seed=self.scenario.seed, engine=self.scenario.engine.kind,
            rounds=self.finished, test_accuracy=accuracy, test_loss=loss, cut_bytes=totals.cut.sent, total_bytes=total,
            bytes_wasted=wasted, raw_bytes=totals.cut.raw, total_raw_bytes=totals.total.raw,
            cut_factor=_factor(totals.cut.raw, totals.cut.sent), factor=_factor(totals.total.raw, total),
            seconds=self._seconds(), eval_accuracy=self.history[-1][0].eval_accuracy if self.history else None,
            stopped="rounds" if self.finished == self.scenario.federation.rounds else "budget",
            reducer=self.scenario.compression.reducer.kind, mode=self.scenario.federation.mode,
        )  # fmt: skip
        summary.write(self.folder)
        for observer in self.observers:
            observer.finished(summary, totals)


def _factor(raw: int, sent: int) -> float:
    return raw / sent if sent else 1.0
