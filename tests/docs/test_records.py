"""Records of runs, which docs/results is made of: as good as the runs for whoever compares them."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import small
from places import ROOT

from splitfed import compare
from splitfed.simulation import simulate

SCRIPT = ROOT / "benchmarks" / "records" / "keep.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="no benchmarks beside the tests")
def test_a_record_compares_as_its_run_does(tmp_path: Path) -> None:
    run = simulate(small("federation.rounds=2"), runs=tmp_path / "runs").folder
    records = tmp_path / "records"
    command = [sys.executable, str(SCRIPT), str(run.parent), str(records), "--set", "data.cache=null"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    record = records / run.name
    assert not (record / "checkpoints").exists()
    assert str(tmp_path) not in "".join(path.read_text() for path in record.iterdir())
    one, other = (compare([folder]).grouped().groups[0].runs[0] for folder in (run, record))
    assert (one.summary, one.rounds, one.totals) == (other.summary, other.rounds, other.totals)
