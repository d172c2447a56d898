"""Presets: settings that were measured, by name. `preset: small` at the top of a scenario stands for them, in whatever
sections they are."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from splitfed.config import did_you_mean
from splitfed.scenario.document import Document, Origin, Path, shown

KEY = "preset"

# A rotation makes few bits usable, and gradients and differences bear fewer than activations.
_THREE_BITS = {"kind": "uniform", "bits": 3, "rotation": True, "scale_bits": 16}
_TWO_BITS = {"kind": "uniform", "bits": 2, "rotation": True, "scale_bits": 16}
_LOSSLESS = {"kind": "zstd", "shuffle": "channels"}
_THREE = {"codec": _THREE_BITS, "lossless": _LOSSLESS}
_TWO = {"codec": _TWO_BITS, "lossless": _LOSSLESS}
# Half of all bytes where they travel whole.
_WEIGHTS = {"codec": {"kind": "uniform", "bits": 8}, "delta": _TWO_BITS, "lossless": _LOSSLESS}

# What one tensor's rows have in common is not sent: a third of the bytes of three bits, at the same error.
_ALIKE = {"codec": {"kind": "klt", "snr": 10.0}, "lossless": _LOSSLESS}
_FINER = {"codec": {"kind": "klt", "snr": 14.0}, "lossless": _LOSSLESS}
_ALIKE_GRADIENT = {"codec": {"kind": "klt", "snr": 6.0}, "lossless": _LOSSLESS}
# What the server is sent once it goes over again and again; without something that varies it would learn it by heart.
_MEMORY = {"disk": 2_000_000_000, "mix": 0.5, "smoothing": 0.1}

# Ordered by their bytes, most first, as measured in docs/results.md.
PRESETS: dict[str, dict[str, Any]] = {
    # The gradient teaches the front throughout: for accuracy, for a model from scratch, and with private labels.
    "medium": {
        "compression": {
            "reducer": {"kind": "none"}, "smashed": _THREE, "cut_gradient": _TWO, "front_weights": _WEIGHTS,
        },
    },
    # A pretrained front that learns for a round and settles.
    "small": {
        "federation": {"local_epochs": 2},
        "phases": [{"kind": "gradient", "rounds": 1}, {"kind": "frozen"}],
        "memory": _MEMORY,
        "compression": {
            "reducer": {"kind": "none"}, "smashed": _ALIKE, "cut_gradient": _ALIKE_GRADIENT, "front_weights": _WEIGHTS,
        },
    },
    # A pretrained front that stays as it is, and each image once.
    "tiny": {
        "phases": [{"kind": "frozen"}],
        "memory": {**_MEMORY, "variants": 1},
        "compression": {"reducer": {"kind": "none"}, "smashed": _FINER, "front_weights": _WEIGHTS},
    },
}  # fmt: skip

# What a preset never sets: what an experiment is about, how long it is, and where it runs.
NEVER: tuple[Path, ...] = (
    (KEY,), ("name",), ("seed",), ("model",), ("data",), ("engine",), ("federation", "clients"),
    ("federation", "rounds"),
)  # fmt: skip


_MAY_LACK = ("memory",)


def keys(settings: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """Yield the keys that a preset's settings set; a section that names its `kind` is one of them as a whole, and so is
    one that need not be there."""
    for key, value in settings.items():
        if isinstance(value, dict) and "kind" not in value and key not in _MAY_LACK:
            yield from keys(value, (*path, key))
        else:
            yield (*path, key)


def trespasses(settings: Mapping[str, Any]) -> list[Path]:
    """Return the keys of a preset's settings that none may set."""
    return [path for path in keys(settings) if any(path[: len(n)] == n or n[: len(path)] == path for n in NEVER)]


def written_out(data: Any) -> Any:
    """Return a scenario with the settings of its `preset` in place of the name.

    Keys beside it win, one by one; but a section among them that names its `kind` stands as it is written, and so does
    a list. Anything else than a scenario with a known preset is returned as it is.
    """
    if not isinstance(data, dict) or not isinstance(name := data.get(KEY), str) or name not in PRESETS:
        return data
    return _refined(deepcopy(PRESETS[name]), {key: value for key, value in data.items() if key != KEY})


def part_of(data: Any) -> Any:
    """Return an operating point with what its `preset` says of `compression`, but for weights, in place of the name;
    anything else than one with a known preset as it is."""
    if not isinstance(data, dict) or not isinstance(name := data.get(KEY), str) or name not in PRESETS:
        return data
    crossing = {key: value for key, value in PRESETS[name]["compression"].items() if key != "front_weights"}
    own = {key: value for key, value in data.items() if key != KEY}
    return {**own, "compression": _refined(deepcopy(crossing), own.get("compression", {}))}


def _refined(under: Any, over: Any) -> Any:
    if not isinstance(over, dict) or "kind" in over:
        return over
    if isinstance(under, str):  # a kind, in its short form
        under = {"kind": under}
    if not isinstance(under, dict):
        return over
    return {**under, **{key: _refined(under[key], value) if key in under else value for key, value in over.items()}}


def write_out(document: Document) -> bool:
    """Put the settings of a document's preset in the place of its name, as if they were written where it is; return
    whether its name is known, or there is none. Another is noted as a problem."""
    name = document.data.pop(KEY, None)
    if name is None:
        return True
    origin = document.origin((KEY,))
    if not isinstance(name, str) or name not in PRESETS:
        close = did_you_mean(name, list(PRESETS)) if isinstance(name, str) else ""
        document.refuse((KEY,), f"unknown preset {shown(name)}, known: {', '.join(map(repr, PRESETS))}{close}", origin)
        return False
    own = document.data
    document.data = written_out({**own, KEY: name})
    _note(document, document.data, own, (), origin._replace(preset=name))
    return True


def drop(document: Document) -> None:
    """Drop every key that any preset sets."""
    known = {path for settings in PRESETS.values() for path in keys(settings)}
    document.data = _without(document.data, known, ())
    for path in [p for p in document.origins if any(p[: len(key)] == key for key in known)]:
        del document.origins[path]


def _without(value: Any, known: set[Path], path: Path) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without(inner, known, (*path, k)) for k, inner in value.items() if (*path, k) not in known}


def refuse_old_place(document: Document) -> bool:
    """Note as a problem that a preset is named where it was before it spanned sections; return whether it is."""
    section = document.data.get("compression")
    if not isinstance(section, dict) or KEY not in section:
        return False
    path, name = ("compression", KEY), section[KEY]
    document.refuse(path, moved(name))
    document.data["compression"] = {key: value for key, value in section.items() if key != KEY}
    return True


def moved(name: Any) -> str:
    """Return what is said of a preset's old place."""
    written = name if isinstance(name, str) and name in PRESETS else "NAME"
    return f"is of the whole scenario now: write 'preset: {written}' at its top, or --preset {written}"


def _note(document: Document, whole: dict[str, Any], own: dict[str, Any], path: Path, origin: Origin) -> None:
    """Note the origin of everything in a section that is not the user's own."""
    for key, value in whole.items():
        if key not in own:
            document.origins[*path, key] = origin
        elif isinstance(value, dict) and isinstance(own[key], dict):
            _note(document, value, own[key], (*path, key), origin)
