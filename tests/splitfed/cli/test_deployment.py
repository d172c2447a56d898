"""What `serve` and `join` refuse before anything starts."""

import socket
from pathlib import Path

import pytest
from helpers import small

from splitfed import Observer, simulate
from splitfed.cli.main import main
from splitfed.clients.deployment.join import join
from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.diagnosis import proxies
from splitfed.engines.deployment.processes import parse
from splitfed.errors import RunError, SplitfedError
from splitfed.scenario.engine import Deployment, Ray
from splitfed.server.deployment.serve import deployed, serve


def test_a_deployed_scenario_differs_in_its_engine_alone():
    scenario = small("engine={kind: ray, threads: 2, grace: 3, deadline: 70, client_cpus: 2}")
    assert isinstance(scenario.engine, Ray)
    made = deployed(scenario, clients=5)
    assert made.engine == Deployment(threads=2, grace=3.0, deadline=70.0)
    assert made.federation.clients == 5
    assert made.model_copy(update={"engine": scenario.engine, "federation": scenario.federation}) == scenario
    assert deployed(small()).engine == Deployment(threads=1)


def test_a_deployed_scenario_keeps_the_rules():
    """In one process no client is ever missing, so that any patience will do; a deployment gives up after 600 s."""
    patient = small("federation.mode=psl", "federation.patience=700.0")
    with pytest.raises(RunError, match=r"^engine\.deadline: after 600 s a joint step of psl may still .* \(700 s\)"):
        deployed(patient)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 without --tls: all would cross in plain text"),
        ({"host": "gpu.example.org"}, "or say --insecure"),
        ({"enough": 4}, "--start-with 4: must be from 1 to 3, the number of clients"),
        ({"enough": 0}, "--start-with 0: must be from 1 to 3"),
        ({"clients": 9}, "client 4 of 9 has no key: make more with 'splitfed certs'"),
        ({"tls": "nowhere"}, "nowhere"),
        ({"port": 9000, "split_port": 9000}, "--port and --split-port are both 9000"),
        ({"port": 70000}, "--port: a port is a number from 1 to 65535, not '70000'"),
        ({"split_port": 0}, "--split-port: a port is a number from 1 to 65535, not '0'"),
        ({"host": "", "insecure": True}, "--host: name an address to listen at"),
    ],
)
def test_mistakes_end_before_anything_starts(options, problem, tmp_path):
    tls = tmp_path / "tls"
    if "clients" in options:
        make(tls, ["127.0.0.1"], 4)
        options = options | {"tls": tls}
    with pytest.raises(SplitfedError) as caught:
        serve(small(), runs=tmp_path / "runs", **options)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_port_that_is_taken_leaves_no_run_behind(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        for ports in ({"port": taken}, {"split_port": taken}):
            with pytest.raises(SplitfedError, match=f"cannot listen at 127.0.0.1:{taken}: .*; choose another port"):
                serve(small(), runs=tmp_path / "runs", **ports)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_simulation_is_not_resumed_as_a_deployment(tmp_path):
    class Failing(Observer):
        def round(self, metrics, sent, finished):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        simulate(small("federation.rounds=1"), runs=tmp_path, observers=[Failing()])
    (folder,) = tmp_path.iterdir()
    with pytest.raises(SplitfedError, match="was no deployment; go on with: splitfed simulate --resume"):
        serve(None, resume=folder)


@pytest.mark.parametrize(
    ("server", "where"),
    [
        ("gpu.example.org", ("gpu.example.org", 9092)),
        ("gpu.example.org:80", ("gpu.example.org", 80)),
        ("192.0.2.7:9000", ("192.0.2.7", 9000)),
        ("2001:db8::7", ("2001:db8::7", 9092)),
        ("[2001:db8::7]:9000", ("2001:db8::7", 9000)),
    ],
)
def test_addresses(server, where):
    assert parse(server, 9092) == where


@pytest.mark.parametrize(
    "server",
    ["", ":9092", "a b", "[]", "[::1", "[host]:9092", "a:b:c", "http://host", "http://host:1", "host/x", "u@h"],
)
def test_no_addresses(server):
    with pytest.raises(SplitfedError, match=r"is no server's address|a port is a number"):
        parse(server, 9092)


@pytest.mark.parametrize("server", ["host:", "host:port", "host:0", "host:-1", "host:70000", "[::1]:x", "[::1]:"])
def test_no_ports(server):
    with pytest.raises(SplitfedError, match=r"a port is a number from 1 to 65535, not '"):
        parse(server, 9092)


def test_a_port_that_is_no_number_is_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["splitfed", "serve", "digits", "--split-port", "x"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "--split-port: a port is a number from 1 to 65535, not 'x'\n")


@pytest.mark.parametrize("host", ["no such host", "a..b", "203.0.113.9"])
def test_a_host_that_is_not_here_leaves_no_run_behind(host, tmp_path):
    with pytest.raises(SplitfedError, match=r"cannot listen at .*; --host must name an address of this machine$"):
        serve(small(), host=host, insecure=True, runs=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_proxy_is_told_to_be_of_no_use_where_it_would_be_used(monkeypatch):
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "intranet.example.org")
    assert proxies("gpu.example.org") == []
    monkeypatch.setenv("all_proxy", "socks5://user:secret@127.0.0.1:9")
    assert proxies("intranet.example.org") == []
    said = []
    with pytest.raises(SplitfedError, match="no data"):
        join("gpu.example.org:81", insecure=True, client=0, say=said.append)
    (line,) = said
    assert line.startswith("ALL_PROXY: no proxy is used, gpu.example.org is asked directly.")
    assert "ssh -L 81:gpu.example.org:81" in line
    with pytest.raises(SplitfedError, match="no data"):
        join("127.0.0.1", client=0, say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "127.255.0.1:9000", "::1", "[::1]:80", "::ffff:127.0.0.3", "localhost", "LocalHost.:81"]
)
def test_what_stays_on_this_machine_needs_no_keys(host, tmp_path, monkeypatch):
    monkeypatch.setenv("all_proxy", "http://proxy.example.org")
    said = []
    with pytest.raises(SplitfedError, match="which client is this"):
        join(host, say=said.append)
    assert said == []
    with pytest.raises(SplitfedError, match="--start-with 9"):
        serve(small(), host=parse(host, 9092)[0], enough=9, runs=tmp_path)


@pytest.mark.parametrize("host", ["128.0.0.1", "::2", "0.0.0.0", "::", "localhost.example.org", "127.0.0.1.nip.io"])
def test_what_may_leave_this_machine_needs_keys(host, tmp_path):
    with pytest.raises(SplitfedError, match="without --tls"):
        join(host, client=0)
    with pytest.raises(SplitfedError, match="without --tls"):
        serve(small(), host=host, runs=tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"server": "gpu.example.org", "partition": 0}, "without --tls: all would cross in plain text"),
        ({}, "which client is this?"),
        ({"client": 1}, "no data: name this client's images with --data"),
        ({"client": 1, "partition": 2}, "a client takes the share of its own number"),
        ({"client": 1, "data": "missing"}, "--data missing: there is no such file or folder"),
        ({"client": 1, "data": "~no-such-user/x"}, "~no-such-user/x: no home folder of this user is known"),
        ({"tls": "tls", "partition": 0}, "client-"),
        ({"tls": "tls/client-0"}, "no data"),
        ({"tls": "tls/client-0", "partition": 1}, "this is the key of client 0, not of client 1"),
    ],
)
def test_what_a_client_cannot_join_with(options, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "tls", ["127.0.0.1"], 1)
    paths = {name: Path(value) for name, value in options.items() if name in ("tls", "data")}
    with pytest.raises(SplitfedError) as caught:
        join(**({"server": "127.0.0.1"} | options | paths))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
