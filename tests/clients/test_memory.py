"""A client of a deployment whose memory does not hold its part is told so before the first round."""

import re
import resource
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from helpers import DEEPER, small

from splitfed import __version__
from splitfed.clients.app import app
from splitfed.clients.deployment import memory
from splitfed.clients.deployment.memory import check_memory, free
from splitfed.clients.settings import Settings
from splitfed.clients.worker import Worker
from splitfed.errors import ModelError, RunError
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.wire.messages import PROTOCOL

MANY = 32  # images, more than a mini-batch
PHONE = "federation.profiles={phone: {share: 1, device: {memory: %dkB}}}"


def plan(*more: str) -> Scenario:
    return small(*DEEPER, "model.cut=3", *more).model_copy(update={"engine": Deployment(threads=1)})


def problem(settings: Settings, *more: str) -> str:
    try:
        check_memory(Worker(plan(*more), settings), settings, MANY)
    except RunError as error:
        return str(error)
    return ""


def test_ways_out_of_what_a_machine_has_free(monkeypatch) -> None:
    """Each is taken, and is enough; a chunk is this machine's to say."""
    assert not problem(Settings(0))
    monkeypatch.setattr(memory, "free", lambda device: 250_000)
    told = problem(Settings(0))
    found = re.fullmatch(
        r"its memory, 0\.2 MB free here, is less than the 0\.\d MB that it needs to train: --chunk (\d+) here or "
        r"the server's training\.batch_size (\d+) or the server's model\.cut (\d) fits",
        told,
    )
    assert found, told
    chunk, batch, cut = map(int, found.groups())
    assert not problem(Settings(0, chunk=chunk))
    assert problem(Settings(0, chunk=chunk + 1))
    assert not problem(Settings(0), f"training.batch_size={batch}")
    assert not problem(Settings(0), f"model.cut={cut}")
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    assert problem(Settings(0)).endswith("to train: it would take a smaller model")


def test_what_its_profile_says_of_it() -> None:
    assert "its memory, 0.2 MB by profile phone, is less than" in problem(Settings(0, profile="phone"), PHONE % 200)
    assert not problem(Settings(0, profile="phone"), PHONE % 20_000)


def test_the_server_hears_of_it(identity) -> None:
    scenario = plan("federation.profiles={phone: {share: 1, device: {memory: 9kB}}}").to_yaml()
    node = {"partition-id": 1, "splitfed-profile": "phone"}
    context = Context(1, 2, node, RecordDict(), {"scenario": scenario, "run": "run-1"})
    asked = {"protocol": PROTOCOL, "version": __version__, "classes": list("0123456789"), "channel": "", "token": ""}
    answer = app(Message(RecordDict({"config": ConfigRecord(asked)}), 2, "query"), context).content["config"]
    assert answer["problem"].startswith("its memory, 0.0 MB by profile phone, is less than the ")


def test_the_limits_of_a_process_count() -> None:
    """The least of them, and what it has taken is gone."""
    cpu, soft = torch.device("cpu"), resource.getrlimit(resource.RLIMIT_AS)
    unlimited = free(cpu)
    if unlimited is None:
        # Nothing is told where there is no /proc, as on macOS: then no memory is checked, and no limit can be seen.
        pytest.skip("this system does not tell what is free")
    (taken,) = re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(taken) + 64_000_000, soft[1]))
    try:
        limited = free(cpu)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, soft)
    assert limited is not None
    assert 0 < limited <= 64_000_000


def test_a_machine_that_takes_more_than_a_mini_batch_takes_all_of_it() -> None:
    """It knows nothing of mini-batches, and says how many images it has room for; that is the scenario's mistake."""
    for chunk, taken in ((4, 4), (15, 15), (16, None), (400, None)):
        assert Settings(0, chunk=chunk).with_chunk(plan("training.client.chunk=8")).training.client.chunk == taken


def test_a_chunk_that_does_not_go_with_the_servers_scenario() -> None:
    with pytest.raises(RunError, match=r"--chunk 4: .*training\.client\.chunk: with training\.ahead"):
        Worker(plan("training.ahead=1"), Settings(0, chunk=4))
    with pytest.raises(ModelError, match=r"training\.client\.chunk: the gates of the reducer"):
        Worker(plan("compression.reducer=semantic_tokens"), Settings(0, chunk=4))
