"""Parallel split learning as whole runs in one process: against one large batch, and whatever happens to a client."""

import threading

import pytest
import torch
from flwr.app import Error, Message, MessageType
from helpers import ADC, PLAIN, small
from models import newest, whole_model
from outcomes import outcome
from torch import nn

from splitfed import Scenario, simulate
from splitfed.clients.steps import SplitStep
from splitfed.clients.worker import Worker
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.engines.inline import InlineGrid
from splitfed.errors import RunError, ScenarioError
from splitfed.model.build import build, pixel_stats
from splitfed.run.observer import Observer
from splitfed.seeds import Key
from splitfed.server.back.server import SplitServer
from splitfed.wire.messages import LACKING

PSL = "federation.mode=psl"
SGD = [f"training.{side}.optimiser={{kind: sgd, lr: 0.5}}" for side in ("client", "server")]


def test_one_step_a_round_is_training_with_one_large_batch(tmp_path):
    """Averaged fronts that have each made a step at the full rate are one front that has seen all of the batch."""
    steps = ["federation.local_epochs=null", "federation.local_steps=1", "federation.rounds=3"]
    plan = small(*PLAIN, *SGD, *steps, PSL)
    found = newest(simulate(plan, runs=tmp_path).folder)
    key = Key(plan.seed)
    data = load(plan.data, plan.model.image_size, 3, key.at("data"))
    assert [len(rows) for rows in data.partitions] == [32, 32, 32]  # so that the average is by equal shares
    vit = build(plan.model, len(data.classes), key=key.at("model")).train()
    mean, std = pixel_stats(plan.model)
    optimiser = torch.optim.SGD(vit.parameters(), lr=0.5)
    start = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    for number in (1, 2, 3):
        parts = [
            next(batches(data.train, rows, 16, key.at("batches", number, one), mean=mean, std=std, steps=1))
            for one, rows in enumerate(data.partitions)
        ]
        images, labels = (torch.cat([part[place] for part in parts]) for place in (0, 1))
        nn.functional.cross_entropy(vit(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=name)
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc2.weight", "blocks.1.mlp.fc2.weight"):
        # A front at a third of the rate would be further off than the tolerance.
        assert (vit.state_dict()[name] - start[name]).abs().max() > 1e-3, name


def test_one_client_is_whole_model_training_within_a_round(tmp_path):
    plan = small(*PLAIN, "federation.clients=1", PSL)
    found = newest(simulate(plan, runs=tmp_path).folder)
    for name, tensor in whole_model(plan).items():
        assert torch.equal(found[name], tensor), name


def test_the_order_of_the_threads_makes_no_difference(tmp_path, monkeypatch):
    """Bit for bit, with dropout in both halves, which draws from torch's global generator."""
    plan = small(*ADC, PSL, "model.args.proj_drop_rate=0.1", "federation.wave=2", "data.augment=flip")
    one, push = outcome(simulate(plan, runs=tmp_path).folder), InlineGrid.push_messages
    waves = []

    def backwards(grid, messages):
        turned = list(messages)[::-1]
        if len(turned) > 1:
            waves.append(len(turned))
        return push(grid, turned)[::-1]

    monkeypatch.setattr(InlineGrid, "push_messages", backwards)
    assert outcome(simulate(plan, runs=tmp_path).folder) == one
    assert waves == [2, 2]  # and the third client by itself, in each of two rounds


def test_memory_is_a_front_for_each_client_of_the_wave(tmp_path, monkeypatch):
    made, waves, start = [], [], SplitServer.start_wave
    init = Worker.__init__
    monkeypatch.setattr(
        Worker, "__init__", lambda self, *given, **more: (made.append(self), init(self, *given, **more))[1]
    )
    monkeypatch.setattr(
        SplitServer, "start_wave", lambda self, wave, *more: (waves.append(list(wave)), start(self, wave, *more))
    )
    plan = small(PSL, "federation.clients=5", "federation.wave=2", "federation.rounds=2", "seed=11")
    result = simulate(plan, runs=tmp_path)
    assert waves == 2 * [[0, 1], [2, 3], [4]]
    assert [row.clients for row in result.rounds] == [5, 5]
    assert len(made) == 2
    assert made[0].holding is made[1].holding


class Interrupting(Observer):
    """Presses Ctrl-C in the middle of the second round."""

    def progress(self, round: int, share: float) -> None:
        if round == 2 and share > 0.4:
            raise KeyboardInterrupt


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "client"]


def test_a_run_that_was_interrupted_and_resumed_ends_as_one_that_was_not(tmp_path):
    plan = small(*ADC, PSL, "federation.rounds=3", "federation.cohort=2", "training.client_state=keep")
    whole = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "stopped", observers=[Interrupting()])
    assert not client_threads()
    (folder,) = (tmp_path / "stopped").iterdir()
    assert (folder / "wasted.csv").read_text().count("\n") > 1
    simulate(resume=folder)
    assert outcome(folder) == whole


def test_a_clients_exception_stops_the_run_and_leaves_no_thread(tmp_path, monkeypatch):
    step = SplitStep.__call__

    def failing(self, stream, images, labels, key, place, visit):
        if (place.client, place.step) == (1, 2):
            raise ZeroDivisionError("an oversight")
        return step(self, stream, images, labels, key, place, visit)

    with monkeypatch.context() as patch:
        patch.setattr(SplitStep, "__call__", failing)
        with pytest.raises(ZeroDivisionError, match="an oversight"):
            simulate(small(PSL), runs=tmp_path)
    assert not client_threads()
    simulate(small(PSL, "federation.rounds=1"), runs=tmp_path)  # the workers are fit for another


def test_who_vanishes_holds_up_nobody(tmp_path):
    """In one process nobody's patience ends: a stream that is over has to be enough."""
    vanishing = "federation.availability={kind: drawn, dropout: 0.6}"
    plan = small(PSL, vanishing, "federation.rounds=3", "data.limit=192", "federation.wave=2")
    one, two = (simulate(plan, runs=tmp_path) for _ in range(2))
    assert one.summary.lost > 0
    assert sum(row.clients for row in one.rounds) > 0
    assert outcome(one.folder) == outcome(two.folder)


def test_waves_of_copies_average_as_the_whole_cohort_does(tmp_path):
    one, two = (
        newest(simulate(small("federation.mode=sfl-v1", wave), runs=tmp_path).folder)
        for wave in ("federation.wave=null", "federation.wave=2")
    )
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor), name


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["federation.mode=sl", "federation.wave=2"], "federation.wave: with sl clients train one after another"),
        (["federation.wave=2"], "federation.wave: with sfl-v2 clients train one after another.*or set order: arrival"),
        ([PSL, "federation.wave=4"], "federation.wave: 4 at once of 3 clients a round: lower it, or leave it out"),
        ([PSL, "federation.cohort=2", "federation.wave=3"], "federation.wave: 3 at once of 2 clients a round"),
        (["federation.patience=5"], "federation.patience: with sfl-v2 no client waits.*set mode: psl"),
        ([PSL, "federation.patience=0"], "federation.patience"),
        ([PSL, "federation.order=arrival"], "federation.order: with psl clients train in joint steps"),
        ([PSL, "engine={kind: ray, deadline: 60}"], r"engine\.deadline: .*above federation.patience \(60 s\)"),
    ],
)  # fmt: skip
def test_what_cannot_work_together_is_refused(overrides, problem):
    with pytest.raises(ScenarioError, match=problem):
        small(*overrides)


def test_what_goes_together_is_read_and_written_back():
    for overrides in (
        [PSL, "federation.wave=2", "federation.patience=5", "engine={kind: ray, deadline: 6}"],
        ["federation.mode=sfl-v1", "federation.wave=3"], ["federation.order=arrival", "federation.wave=1"],
    ):  # fmt: skip
        assert Scenario.parse(small(*overrides).to_yaml()) == small(*overrides)


def test_ray_is_told_how_many_must_train_at_once(tmp_path, monkeypatch):
    from splitfed.engines.ray import engine as ray_engine

    told = []

    def told_all(server_app, client_app, clients, config, engine, together):
        told.append(together)
        raise RunError("that is all")

    monkeypatch.setattr(ray_engine, "run_ray", told_all)
    for changes in ([], [PSL], [PSL, "federation.wave=2"]):
        with pytest.raises(RunError, match="that is all"):
            simulate(small(*changes, "engine.kind=ray"), runs=tmp_path)
    assert told == [1, 3, 2]


def test_more_than_ray_trains_at_once_is_refused_in_one_line(tmp_path, monkeypatch):
    from contextlib import contextmanager

    from splitfed.engines.ray import engine as ray_engine

    @contextmanager
    def up(address, variables):
        yield {}

    monkeypatch.setattr(ray_engine, "connected", up)
    monkeypatch.setattr(ray_engine, "room", lambda engine: 2)
    with pytest.raises(
        RunError, match=r"^federation\.wave: 3 clients wait for each other, but 2 is all .* 2 or less"
    ) as e:
        simulate(small(PSL, "engine.kind=ray"), runs=tmp_path)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [[PSL], ["federation.order=arrival", "federation.availability=drawn"]])
def test_nobody_waits_for_a_client_that_opens_no_stream(mode, tmp_path, monkeypatch):
    deliver = InlineGrid.deliver

    def lacks(grid, message):
        if message.metadata.message_type == MessageType.TRAIN and message.metadata.dst_node_id == 3:
            return Message(Error(LACKING, "it is gone"), reply_to=message)
        return deliver(grid, message)

    monkeypatch.setattr(InlineGrid, "deliver", lacks)
    found = simulate(small(*mode), runs=tmp_path)
    assert [row.clients for row in found.rounds] == [2, 2]
