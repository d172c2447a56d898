"""What Prometheus reads, and who else may."""

import re
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from splitfed.cli.main import main
from splitfed.engines.deployment.processes import free_port
from splitfed.errors import RunError
from splitfed.inference.service import serve
from splitfed.inference.service.metrics import Metrics, Page


def test_histograms_add_up() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.03, 60.0):
        metrics.answered(2, (3, None, 3), seconds)
    metrics.batch(4, 12, 0.02)
    metrics.crossed("up", "smashed", 10)
    metrics.crossed("up", "smashed", 5)
    metrics.gauges["splitfed_waiting"] = lambda: 7
    text = metrics.text()
    values = dict(re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE))
    assert values['splitfed_requests_total{outcome="answered"}'] == "4"
    assert values['splitfed_images_total{block="2"}'] == "12"
    assert values['splitfed_answers_total{exit="3"}'] == "8"
    assert values['splitfed_answers_total{exit="model"}'] == "4"
    assert values['splitfed_bytes_total{direction="up",role="smashed"}'] == "15"
    assert values["splitfed_waiting"] == "7"
    counts = [int(values[f'splitfed_request_seconds_bucket{{le="{bound}"}}']) for bound in ("0.001", "0.025", "0.05", "10.0", "+Inf")]  # fmt: skip  # noqa: E501
    assert counts == [2, 2, 3, 3, 4]
    assert values["splitfed_request_seconds_count"] == "4"
    assert float(values["splitfed_request_seconds_sum"]) == pytest.approx(60.0315)
    names = re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    assert len(names) == len(set(names)) == len(re.findall(r"^# HELP ", text, re.MULTILINE))
    assert all(re.sub(r"_(bucket|sum|count)?(\{.*)?$|\{.*$", "", name) or name in names for name in values)


def test_the_page_is_this_machines() -> None:
    with Page(Metrics(), 0) as page:
        where = f"http://127.0.0.1:{page.port}"
        with urllib.request.urlopen(f"{where}/health", timeout=5) as answer:
            assert answer.read() == b"ok\n"
        with urllib.request.urlopen(f"{where}/metrics", timeout=5) as answer:
            assert "version=0.0.4" in answer.headers["Content-Type"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{where}/etc/passwd", timeout=5)
        with pytest.raises(RunError, match=f"--metrics-port {page.port}"):
            Page(Metrics(), page.port)
        taken = page.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", taken))


def test_no_page_is_opened_where_none_is_wanted(finished: Path, tmp_path: Path, monkeypatch) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("bytes in"):
            assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve.serve_model(finished, port=free_port(), metrics_port=None, ledger=tmp_path, say=say)
    assert lines[0].startswith("serving     round ")
    assert not any("metrics" in line for line in lines)


def test_the_command_opens_none_a_port_or_the_usual_one(monkeypatch, capsys) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(serve, "serve_model", lambda run, *, metrics_port, **more: asked.append(metrics_port))
    for words in (["--metrics-port", "none"], ["--metrics-port", "9100"], [], ["--metrics-port", "off"]):
        monkeypatch.setattr("sys.argv", ["splitfed", "serve-model", "run", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == (2 if words[1:] == ["off"] else 0)
    assert asked == [None, 9100, 9095]
    assert "--metrics-port: a port is a number from 1 to 65535, not 'off'" in capsys.readouterr().err
