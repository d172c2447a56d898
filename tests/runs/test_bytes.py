"""Every byte: what is handed to the channel is what the ledger, the files and the curves say."""

import json
from collections import Counter

import numpy as np
import pytest
from flwr.common.serde import message_to_proto
from helpers import ADC, PLAIN, small, table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from splitfed import simulate
from splitfed.engines import inline
from splitfed.reports.live.tensorboard import curves_of
from splitfed.wire.channel import InlineStream


@pytest.fixture
def spy(monkeypatch):
    """Count every buffer and message that crosses, where it crosses."""
    seen: Counter[str] = Counter()
    exchange, deliver = InlineStream.exchange, inline.InlineGrid.deliver

    def spying_exchange(self, buffer):
        reply = exchange(self, buffer)
        seen["up"] += len(buffer)
        seen["down"] += len(reply)
        return reply

    def spying_deliver(self, message):
        reply = deliver(self, message)
        seen["control"] += len(message_to_proto(message).SerializeToString())
        seen["control"] += len(message_to_proto(reply).SerializeToString())
        return reply

    monkeypatch.setattr(InlineStream, "exchange", spying_exchange)
    monkeypatch.setattr(inline.InlineGrid, "deliver", spying_deliver)
    return seen


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
@pytest.mark.parametrize("compression", [PLAIN, ADC], ids=["plain", "adc"])
def test_spied_lengths_equal_every_account(compression, mode, spy, tmp_path):
    result = simulate(small(*compression, f"federation.mode={mode}", "federation.cohort=2"), runs=tmp_path)
    cut, total = spy["up"] + spy["down"], spy["up"] + spy["down"] + spy["control"]

    assert result.totals.select(plane="data", direction="up").sent == spy["up"]
    assert result.totals.select(plane="data", direction="down").sent == spy["down"]
    rows = table(result.folder / "ledger.csv")
    assert sum(int(row["sent_bytes"]) for row in rows if row["plane"] == "data") == cut
    assert sum(int(row["sent_bytes"]) for row in rows) == total
    summary = json.loads((result.folder / "summary.json").read_text())
    assert (summary["cut_bytes"], summary["total_bytes"], summary["bytes_wasted"]) == (cut, total, 0)
    assert (result.rounds[-1].cut_bytes, result.rounds[-1].total_bytes) == (cut, total)

    curves = EventAccumulator(str(curves_of(result.folder)), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    assert curves.Tensors("loss/by_cut_bytes/train")[-1].step == cut
    assert curves.Tensors("loss/by_total_bytes/train")[-1].step == total
    assert curves.Tensors("sum_MB/total")[-1].tensor_proto.float_val[0] == np.float32(total / 1e6)


def test_uncompressed_run_is_the_yardstick(tmp_path):
    """Its raw bytes are those that a compressed run of the same seed reports, and framing costs it under 5 %."""
    plain = simulate(small(*PLAIN), runs=tmp_path).summary
    compressed = simulate(small(*ADC), runs=tmp_path).summary
    assert plain.raw_bytes == compressed.raw_bytes
    assert plain.total_raw_bytes == pytest.approx(compressed.total_raw_bytes, rel=1e-3)  # metrics count as sent
    assert 0.95 < plain.cut_factor <= 1
    assert compressed.cut_factor > 4


def test_raw_bytes_are_those_of_float32_activations(tmp_path):
    """By hand: 96 images, 2 rounds, (2x2 patches + CLS) x 16 features, up and down, and 8 bytes a label."""
    plain = simulate(small(*PLAIN), runs=tmp_path)
    numbers = 2 * 96 * 5 * 16
    assert plain.totals.select(role="smashed").raw == 4 * numbers
    assert plain.totals.select(role="smashed").sent == 4 * numbers
    assert plain.totals.select(role="cut_gradient").sent == 4 * numbers
    assert plain.totals.select(role="targets").raw == 8 * 2 * 96
    assert plain.totals.select(role="targets").sent == 8 * 2 * 96


def test_stages_only_shrink(tmp_path):
    totals = simulate(small(*ADC), runs=tmp_path).totals
    for role in ("smashed", "cut_gradient", "front_weights"):
        sizes = totals.select(role=role)
        assert sizes.raw >= sizes.reduced > sizes.coded >= sizes.sent > 0, role
    assert totals.select(role="smashed").reduced < totals.select(role="smashed").raw


def test_one_row_for_each_role_of_each_frame(tmp_path):
    result = simulate(small(*ADC, "federation.rounds=1"), runs=tmp_path)
    rows = [
        row for row in table(result.folder / "ledger.csv") if row["round"] != "0"
    ]  # where clients have no number yet
    places = [tuple(row[c] for c in ("round", "step", "client", "direction", "plane", "role")) for row in rows]
    assert len(set(places)) == len(places)
    steps = {(row["client"], row["step"]) for row in rows if row["role"] == "smashed"}
    assert len(steps) == 3 * 2  # 32 images in batches of 16, at each of 3 clients
    for client, step in steps:
        roles = {(r["direction"], r["role"]) for r in rows if (r["client"], r["step"]) == (client, step)}
        assert roles == {
            ("up", "smashed"), ("up", "targets"), ("up", "envelope"), ("down", "cut_gradient"), ("down", "envelope"),
        }  # fmt: skip
