"""What runs came to, to be compared."""

import json
from pathlib import Path

from helpers import table
from safetensors.torch import load_file

from splitfed.run.client_scores import read_scores
from splitfed.run.summary import Summary


def outcome(folder: Path) -> dict:
    """All that must not depend on interruptions: figures, bytes, weights."""
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("seconds", "bytes_wasted", "total_bytes", "factor", "images_factor"):
        summary.pop(key)
    (newest,) = sorted((folder / "checkpoints").iterdir())[-1:]
    model = load_file(newest / "model.safetensors")
    return {
        "summary": summary,
        "metrics": table(folder / "metrics.csv", "seconds"),
        "ledger": (folder / "ledger.csv").read_text(),
        "clients": read_scores(folder),  # none where no client was asked
        "model": {name: tensor.numpy().tobytes() for name, tensor in model.items()},
    }


def data_rows(folder: Path) -> list[dict[str, str]]:
    return [row for row in table(folder / "ledger.csv") if row["plane"] == "data"]


def same(one: Path, other: Path) -> None:
    assert data_rows(one) == data_rows(other)
    without = ("seconds", "total_bytes", "total_raw_bytes")
    assert table(one / "metrics.csv", *without) == table(other / "metrics.csv", *without)
    scores = [path.read_text() for path in (one / "clients.csv", other / "clients.csv") if path.exists()]
    assert len(scores) == 0 or (len(scores) == 2 and scores[0] == scores[1])  # no file where clients do not evaluate
    first, second = Summary.read(one), Summary.read(other)
    assert (first.test_accuracy, first.test_loss, first.cut_bytes) == (
        second.test_accuracy, second.test_loss, second.cut_bytes,
    )  # fmt: skip
    assert (first.bytes_wasted, second.bytes_wasted) == (0, 0)
