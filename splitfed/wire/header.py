"""The header of a frame: msgpack of [kind, round, client, step, meta, tensors], where each tensor is [name, tag, dtype,
shape, lossless tag, coded length, sent length].

Reading one checks every field's exact type and range, and every tensor against what is expected, before a byte of data
is looked at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import msgpack

from splitfed.compression.codecs.base import Buffer
from splitfed.compression.codecs.decoders import coded_size, fits
from splitfed.compression.expect import Expected
from splitfed.compression.lossless import RAW
from splitfed.errors import WireError

MAX_HEADER = 64 * 1024
MAX_NUMBER = 2**63 - 1
MAX_TEXT = 256
MAX_META = 16
_MAX_KEY, _MAX_DIMS = 32, 8

Scalar = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its name, what its packet says, the lossless stage's tag, and bytes before and after that stage."""

    name: str
    tag: str
    dtype: str
    shape: tuple[int, ...]
    lossless: str
    coded: int
    sent: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything in a frame but its data."""

    kind: str
    round: int
    client: int
    step: int
    meta: dict[str, Scalar]
    entries: list[Entry]

    def write(self) -> bytes:
        """Return the header's bytes."""
        rows = [(e.name, e.tag, e.dtype, e.shape, e.lossless, e.coded, e.sent) for e in self.entries]
        return msgpack.packb([self.kind, self.round, self.client, self.step, self.meta, rows])


def read_header(data: Buffer, kinds: Mapping[str, Expected]) -> Header:
    """Read a peer's header of one of these kinds, with exactly the tensors that it expects. Raises WireError."""
    # A list's memory is taken before its elements are read, so no list may be longer than a receiver expects.
    longest = max([_MAX_DIMS, *(len(expected) for expected in kinds.values())])
    kind, round, client, step, meta, rows = _list(_parse(data, longest), 6, "a header")
    if type(kind) is not str or kind not in kinds:
        raise WireError(f"a frame of the kind {_short(kind)}, where {', '.join(sorted(kinds))} is expected")
    _number(round, 0, "the round")
    _number(client, -1, "the client")
    _number(step, 0, "the step")
    problem = meta_problem(meta) if type(meta) is dict else "they are no map"
    if problem:
        raise WireError(f"the meta of a {kind} frame are refused: {problem}")
    return Header(kind, round, client, step, meta, _entries(rows, kinds[kind]))


def meta_problem(meta: Mapping[str, Scalar]) -> str | None:
    """Tell why no receiver would take these, or None: at most 16 small scalars, and no NaN or infinity."""
    if len(meta) > MAX_META:
        return f"{len(meta)} entries, more than {MAX_META}"
    for key, value in meta.items():
        if type(key) is not str or len(key) > _MAX_KEY:
            return f"the key {_short(key)}"
        if not _small(value):
            return f"{_short(key)} is {_short(value)}"
    return None


def _small(value: Any) -> bool:
    if type(value) is str:
        return len(value) <= MAX_TEXT
    if type(value) is int:
        return abs(value) <= MAX_NUMBER
    return type(value) is bool or (type(value) is float and isfinite(value))


def _parse(data: Buffer, longest: int) -> Any:
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=True,
            object_pairs_hook=_map,
            max_str_len=4 * MAX_TEXT,
            max_bin_len=0,
            max_ext_len=0,
            max_map_len=MAX_META,
            max_array_len=longest,
        )
    # ValueError is what msgpack raises for bad UTF-8, its limits, trailing and missing bytes, and a key twice; its
    # version in pure Python lets nesting run into the interpreter's limit.
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"a header that is not msgpack ({type(error).__name__})") from None


def _map(given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(given)  # msgpack without its extension gives a generator
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _short(value: Any) -> str:
    return repr(value)[:40] if type(value) in (str, int, float, bool) else type(value).__name__


def _list(value: Any, length: int, what: str) -> list:
    if type(value) is not list or len(value) != length:
        raise WireError(f"{what} that is not a list of {length}")
    return value


def _number(value: Any, least: int, what: str) -> int:
    # Not isinstance: True is an int to Python.
    if type(value) is not int or not least <= value <= MAX_NUMBER:
        raise WireError(f"{what} is {_short(value)}, not a number from {least}")
    return value


def _entries(rows: Any, expected: Expected) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for row in _list(rows, len(expected), "the tensors"):
        name, tag, dtype, shape, lossless, coded, sent = _list(row, 7, "a tensor's entry")
        if type(name) is not str or name not in expected or name in entries:
            raise WireError(f"a tensor {_short(name)} that is not expected, or twice")
        if not type(tag) is type(dtype) is type(lossless) is str:
            raise WireError(f"the tag, dtype or stage of {name} is no text")
        if type(shape) is not list or len(shape) > _MAX_DIMS:
            raise WireError(f"the shape of {name} is no list of numbers")
        dims = tuple(_number(size, 0, f"a dimension of {name}") for size in shape)
        if not any(choice.allows(dtype, dims) for choice in expected[name]):
            raise WireError(f"{name} is {_short(dtype)} {list(dims)}, which is not expected")
        if not fits(_number(coded, 0, f"the length of {name}"), coded_size(tag, dtype, dims)):
            raise WireError(f"{name} takes {coded} bytes, which no {tag} packet of this shape does")
        if _number(sent, 0, f"the sent length of {name}") > coded or (lossless == RAW and sent != coded):
            raise WireError(f"{name} was sent as {sent} bytes, but takes {coded}")
        entries[name] = Entry(name, tag, dtype, dims, lossless, coded, sent)
    return list(entries.values())
