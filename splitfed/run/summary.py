"""What a whole run came to: `summary.json`, written last, so a run folder that has it is complete."""

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitfed.errors import RunError
from splitfed.files import reason, write
from splitfed.run.client_scores import STANDING
from splitfed.run.ledger import Totals
from splitfed.run.metrics import RECALL, Metrics

if TYPE_CHECKING:
    from splitfed.scenario import Scenario

NAME = "summary.json"
# What the last round's row says of the whole run.
_LAST = ("eval_accuracy", "simulated_seconds", *STANDING)


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of a run. Accuracy is a share in [0, 1] on the test split, read once. `cut_*` is the data plane, the
    others both planes; `total_bytes` contains `bytes_wasted`, and `factor` divides what would have been sent
    uncompressed by what was. `raw_bytes` is the uncompressed size of the cut. `stopped` is `rounds`, `budget` or, where
    the passes over memory were done before, `memory`. `lost`
    counts clients that were sampled and not taken, over all rounds; `simulated_seconds` is None where nothing tells
    them. The four of clients are what these found after the last round, None where they were not asked;
    `images_left_out` counts those that `data.on_bad: skip` passes over; `initial_weights` is `send`, or `load` where
    clients have what the run begins with from the model's own file. `images_bytes` is what the images weigh that
    clients train on or hold out, as they are stored; `images_factor` how many times that was sent in all, `total_bytes`
    over it; `images_reported`: by the word of clients, and not as the server's own data have it. Both are None where
    nothing tells them. `symbols` are those of the channel that went up in training, None where a reducer makes none.
    `target` is what the controller's target allows, in seconds, bytes a second or bytes as `target_kind` says, and
    `target_until` the round or time by which all bytes count, None for the end; `target_spent` what came of it, of the
    client that spent most where each has its own, and `target_held` whether that is within it: None where nothing
    tells. Fields with a default may be missing in a file, as in those of earlier versions."""

    scenario: str
    seed: int
    engine: str
    rounds: int
    test_accuracy: float
    cut_bytes: int
    total_bytes: int
    bytes_wasted: int
    raw_bytes: int
    cut_factor: float
    factor: float
    seconds: float
    test_loss: float
    eval_accuracy: float | None
    total_raw_bytes: int
    stopped: str
    reducer: str
    mode: str
    lost: int = 0
    simulated_seconds: float | None = None
    clients_accuracy: float | None = None
    worst_client: float | None = None
    median_client: float | None = None
    best_client: float | None = None
    images_left_out: int = 0
    initial_weights: str = "send"
    images_bytes: int | None = None
    images_factor: float | None = None
    images_reported: bool = False
    symbols: int | None = None
    target_kind: str | None = None
    target: float | None = None
    target_until: str | None = None
    target_spent: float | None = None
    target_held: bool | None = None

    @classmethod
    def of(
        cls, scenario: "Scenario", rows: Sequence[Metrics], totals: Totals, wasted: int, seconds: float,
        test_loss: float, test_accuracy: float, images_bytes: int | None = None, images_reported: bool = False,
        spent: float | None = None,
    ) -> "Summary":  # fmt: skip
        """Sum up a run whose rounds were reported as these rows, and that has `wasted` bytes beside the `totals`;
        `spent` is what a controller's target came to."""
        last, total = rows[-1] if rows else None, totals.total.sent + wasted
        rounds, federation = last.round if last else 0, scenario.federation
        return cls(
            scenario=scenario.name, seed=scenario.seed, engine=scenario.engine.kind, rounds=rounds,
            test_accuracy=test_accuracy, test_loss=test_loss, cut_bytes=totals.cut.sent, total_bytes=total,
            bytes_wasted=wasted, raw_bytes=totals.cut.raw, total_raw_bytes=totals.total.raw,
            cut_factor=_factor(totals.cut.raw, totals.cut.sent), factor=_factor(totals.total.raw, total),
            seconds=seconds, stopped=_why(scenario, rows),
            reducer=scenario.compression.reducer.kind, mode=federation.mode, lost=sum(row.lost for row in rows),
            initial_weights=scenario.compression.front_weights.initial,
            images_left_out=mark.bad if (mark := scenario.data.fingerprint) else 0,
            images_bytes=images_bytes or None, images_factor=total / images_bytes if images_bytes else None,
            images_reported=images_reported,
            symbols=scenario.compression.reducer.symbols(totals.select(direction="up", role="smashed").reduced),
            **{name: getattr(last, name, None) for name in _LAST}, **_target(scenario, spent),
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write `summary.json` atomically. Raises WriteError."""
        write(folder / NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Summary":
        """Read the summary of a finished run. Raises RunError where there is none, or it is broken."""
        path = folder / NAME
        try:
            values = json.loads(path.read_bytes())
            named = [field.name for field in fields(cls) if field.name in values or field.default is MISSING]
            found = cls(**{name: values[name] for name in named})
            for field in fields(cls):
                _check(field.name, getattr(found, field.name), field.type)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{folder}: no {NAME}, so the run is unfinished or this is no run folder") from None
        except (OSError, LookupError, ValueError, TypeError, RecursionError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else reason(error)
            raise RunError(f"{path}: broken ({why}); without it, --resume {folder} writes it again") from error
        return found


def _why(scenario: "Scenario", rows: Sequence[Metrics]) -> str:
    if rows and rows[-1].round == scenario.federation.rounds:
        return "rounds"
    passes = scenario.memory.passes if scenario.memory else None
    return "memory" if passes is not None and sum(row.phase == RECALL for row in rows) >= passes else "budget"


def _target(scenario: "Scenario", spent: float | None) -> dict[str, Any]:
    if (target := scenario.control.target) is None:
        return {}
    until, held = getattr(target, "until", None), None if spent is None else spent <= target.allowed
    return {
        "target_kind": target.kind, "target": float(target.allowed), "target_until": until, "target_spent": spent,
        "target_held": held,
    }  # fmt: skip


def _check(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError for a value of another kind than the field's, and for a number that nothing can come to."""
    fits = isinstance(value, (int | float) if kind is float else kind)
    fits = fits and (not isinstance(value, bool) or kind in (bool, bool | None))
    if fits and isinstance(value, int | float) and name != "test_loss":  # what diverged has any loss
        fits = value >= 0 and math.isfinite(value)
    if not fits:
        raise ValueError(f"{name} is {value!r}")


def _factor(raw: int, sent: int) -> float:
    return raw / sent if sent else 1.0
