"""What symbols bring through a noisy channel: accuracy by how many there are, and by signal over noise.

Beside it stands what the same symbols could bring as digits: the same layers, their numbers rounded to few bits, of
which a code for the channel carries as many as its capacity allows, without error. No code of this length does as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splitfed.compression.reducers.settings import JsccConfig
from splitfed.compression.reducers.trained.jscc import count_of
from splitfed.compression.reducers.trained.radio import capacity
from splitfed.inference.rates import OverChannel, over_channel
from splitfed.inference.run_model import RunModel
from splitfed.inference.tradeoff import Measured, measure_all, some_of


@dataclass(frozen=True, slots=True)
class Digital:
    """What rounded numbers bring: at which rate, in how many `bytes` an image, and how many are answered rightly."""

    rate: str
    bytes: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Point:
    """So many complex `symbols` an image, and `per_value` for each of its pixel values, at `snr` decibels: the share
    of images that are answered rightly, the bytes that these symbols could carry at most, and the best of what is
    `digital` and fits into them; None where nothing does."""

    ratio: float
    snr: float
    symbols: int
    per_value: float
    accuracy: float
    capacity: float
    digital: Digital | None


def noisy(
    run: str | Path, snrs: Sequence[float], ratios: Sequence[float] = (), *,
    split: Literal["validation", "test"] = "validation", limit: int | None = None, round: int | None = None,
    device: str | None = None, overrides: list[str] | None = None,
) -> tuple[Measured, list[Point]]:  # fmt: skip
    """Measure a run whose reducer is `jscc` at each of these decibels and ratios, as `over_channel` takes them, on a
    `split` of its data, of which `limit` images are taken at most. The noise of an image is the same at all of them
    but for its strength.

    Raises a SplitfedError as `RunModel.read` and `over_channel` do, and for data that are not here.
    """
    model = RunModel.read(run, round=round, device=device, overrides=overrides)
    ways = over_channel(model.scenario.compression, snrs, ratios)
    images, rows = some_of(model, split, limit)
    found = measure_all(model, None, images, rows, ways)
    geometry, side = model.parts.front.geometry(1, len(model.classes)), model.scenario.model.image_size
    reducer = model.scenario.compression.reducer
    fading = isinstance(reducer, JsccConfig) and reducer.channel == "rayleigh"
    digital = [_digital(found, way) for way in ways if way.snr is None]
    points = []
    for way in ways:
        if way.snr is None:
            continue
        symbols = geometry.tokens * count_of(way.ratio, geometry.width)
        most = symbols * capacity(way.snr, fading) / 8
        points.append(
            Point(
                way.ratio, way.snr, symbols, symbols / (3 * side**2), _accuracy(found, way), most,
                max((one for one in digital if one.bytes <= most), key=lambda one: one.accuracy, default=None),
            )
        )  # fmt: skip
    return found, points


def _digital(found: Measured, way: OverChannel) -> Digital:
    bytes_ = found.sent[way.name][found.cut].smashed.double().mean()
    return Digital(way.name, float(bytes_), _accuracy(found, way))


def _accuracy(found: Measured, way: OverChannel) -> float:
    return float(found.sent[way.name][found.cut].right.double().mean())
