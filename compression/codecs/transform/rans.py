"""rANS (Duda, arXiv 1311.2540): integers in little more than their entropy, by how often each occurs in its group.

A number's magnitude is told by a class, two to each octave from 4 on, and by the bits below, which are stored as they
are. How often each class occurs is told per group, to an eighth of an octave. Many states take turns (arXiv 1402.3392),
so that numpy moves all of them at once, or, where they are few, Python one after another: what is written is the same.
Everything is done in integers, so that any two machines agree.

    tables | states, uint32 each | words, uint16 each | bits below the classes
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from splitfed.errors import CodecError, WireError

MOST = (1 << 15) - 1  # the largest magnitude
_CLASSES = 59  # zero, and two signs of 29
_SUM_BITS, _WORD_BITS = 12, 16
_SUM, _WORD = 1 << _SUM_BITS, 1 << _WORD_BITS
_LEAST = _WORD  # of a state between two numbers; it is below _WORD times as much
_EACH = 1024  # numbers that a state is worth its 4 bytes for
_FEW = 32  # states of which numpy moves all no faster than Python moves each
_FREE = _SUM  # a class that is sure costs nothing: what fills the last turn

_CUT_OFF = "coded numbers are cut off"

Ints = NDArray[np.int64]


def most_bytes(numbers: int, groups: int) -> int:
    """Return the most bytes that so many numbers in so many groups can take."""
    return groups * (_CLASSES + 1) + 4 * _lanes(numbers) + numbers * (_SUM_BITS + 13) // 8 + 4


def encode(groups: Sequence[Ints]) -> bytes:
    """Return groups of integers, each one-dimensional, as bytes. Raises CodecError beyond `MOST`."""
    flat = np.concatenate([*groups, np.zeros(0, np.int64)])
    if flat.size and int(np.abs(flat).max()) > MOST:
        raise CodecError(f"a number is beyond {MOST}")
    classes, below, widths = _classify(flat)
    ends = np.cumsum([0, *(len(group) for group in groups)])
    tables, codes = [], []
    for start, end in pairwise(ends):
        code = _code(np.bincount(classes[start:end], minlength=1))
        tables.append(_table(code))
        codes.append(bytes([len(code)]) + code.tobytes())
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    counts = np.array(tables, np.int64).reshape(-1, _CLASSES)
    starts = np.cumsum(counts, axis=1) - counts
    lanes = _lanes(flat.size)
    walk = _write_each if lanes < _FEW else _write_all
    states, words = walk(counts[owner, classes], starts[owner, classes], lanes)
    return b"".join([*codes, states.astype("<u4").tobytes(), words.astype("<u2").tobytes(), _pack(below, widths)])


def _write_all(shares: Ints, firsts: Ints, lanes: int) -> tuple[Ints, Ints]:
    """Return the states, and the words that they left, of numbers whose classes have so many places from these on."""
    turns = zip(_turns(shares, lanes, _FREE)[::-1], _turns(firsts, lanes, 0)[::-1], strict=True)
    states, words = np.full(lanes, _LEAST, np.int64), [np.zeros(0, np.int64)]
    for f, c in turns:
        full = np.flatnonzero(states >= f << (32 - _SUM_BITS))
        if full.size:
            words.append(states[full] & (_WORD - 1))
            states[full] >>= _WORD_BITS
        whole = states // f
        states += whole * (_SUM - f) + c
    return states, np.concatenate(words[::-1])


def _write_each(shares: Ints, firsts: Ints, lanes: int) -> tuple[Ints, Ints]:
    """Return the same, one number after another, the last one first."""
    states, words = [_LEAST] * lanes, []
    lane = (shares.size - 1) % lanes if lanes else 0
    for f, c in zip(shares[::-1].tolist(), firsts[::-1].tolist(), strict=True):
        state = states[lane]
        if state >= f << (32 - _SUM_BITS):
            words.append(state & (_WORD - 1))
            state >>= _WORD_BITS
        states[lane] = state + state // f * (_SUM - f) + c
        lane = (lane or lanes) - 1
    return np.array(states, np.int64), np.array(words[::-1], np.int64)


def decode(buffer: bytes | memoryview, sizes: Sequence[int]) -> list[Ints]:
    """Return the groups, of these sizes, that `encode` wrote. Raises WireError for bytes that it never writes."""
    data, at, tables = np.frombuffer(buffer, np.uint8), 0, []
    for _ in sizes:
        length = int(data[at]) if at < data.size else -1
        if not 0 < length <= _CLASSES or at + 1 + length > data.size:
            raise WireError("a table of how often numbers occur is cut off, or too long")
        tables.append(_table(data[at + 1 : at + 1 + length]))
        at += 1 + length
    lanes = _lanes(sum(sizes))
    if at + 4 * lanes > data.size:
        raise WireError("the states of coded numbers are cut off")
    states = data[at : at + 4 * lanes].view("<u4").astype(np.int64)
    at += 4 * lanes
    if lanes and int(states.min()) < _LEAST:
        raise WireError("a state of coded numbers is one that no encoder leaves")
    words = data[at : at + (data.size - at) // 2 * 2].view("<u2").astype(np.int64)
    walk = _read_each if lanes < _FEW else _read_all
    found, taken, states = walk(tables, sizes, states, words)
    if (states != _LEAST).any():
        raise WireError("coded numbers do not end where they began")
    flat = _declassify(found, data[at + 2 * taken :])
    return np.split(flat, np.cumsum(sizes)[:-1]) if sizes else []


def _read_all(tables: list[Ints], sizes: Sequence[int], states: Ints, words: Ints) -> tuple[Ints, int, Ints]:
    """Return the classes of numbers, how many words tell them, and in which states that ends. Raises WireError."""
    # A class for each of the places that it has, and one table more, for what fills the last turn.
    counts = np.array([*tables, [_FREE] + [0] * (_CLASSES - 1)], np.int64)
    starts = np.cumsum(counts, axis=1) - counts
    places = np.stack([np.repeat(np.arange(_CLASSES), row) for row in counts])
    owner = _turns(np.repeat(np.arange(len(sizes)), sizes), states.size, len(sizes))
    found, taken = np.empty(owner.shape, np.int64), 0
    for turn, table in enumerate(owner):
        low = states & (_SUM - 1)
        kind = places[table, low]
        found[turn] = kind
        states = counts[table, kind] * (states >> _SUM_BITS) + low - starts[table, kind]
        empty = np.flatnonzero(states < _LEAST)
        if empty.size:
            fresh = words[taken : taken + empty.size]
            if fresh.size < empty.size:
                raise WireError(_CUT_OFF)
            states[empty] = (states[empty] << _WORD_BITS) | fresh
            taken += empty.size
    return found.reshape(-1)[: sum(sizes)], taken, states


def _read_each(tables: list[Ints], sizes: Sequence[int], states: Ints, words: Ints) -> tuple[Ints, int, Ints]:
    """Return the same, one number after another."""
    lanes, fresh, found, taken, lane = states.tolist(), words.tolist(), list[int](), 0, 0
    for counts, size in zip(tables, sizes, strict=True):
        shares, places = counts.tolist(), np.repeat(np.arange(_CLASSES), counts).tolist()
        starts = (np.cumsum(counts) - counts).tolist()
        for _ in range(size):
            state = lanes[lane]
            low = state & (_SUM - 1)
            kind = places[low]
            state = shares[kind] * (state >> _SUM_BITS) + low - starts[kind]
            if state < _LEAST:
                if taken == len(fresh):
                    raise WireError(_CUT_OFF)
                state = (state << _WORD_BITS) | fresh[taken]
                taken += 1
            lanes[lane] = state
            lane = lane + 1 if lane + 1 < len(lanes) else 0
            found.append(kind)
    return np.array(found, np.int64), taken, np.array(lanes, np.int64)


def _lanes(numbers: int) -> int:
    return -(-numbers // _EACH)


def _turns(values: Ints, lanes: int, fill: int) -> Ints:
    """Return numbers as turns of one for each state, the last one filled up: `[turns, lanes]`."""
    missing = -values.size % lanes if lanes else 0
    return np.concatenate([values, np.full(missing, fill, np.int64)]).reshape(-1, lanes or 1)


def _classify(values: Ints) -> tuple[Ints, Ints, Ints]:
    """Return each number's class, the bits below it, and how many these are."""
    sizes = np.abs(values)
    octave = np.frexp(np.maximum(sizes, 1).astype(np.float64))[1].astype(np.int64) - 1
    widths = np.maximum(octave - 1, 0)
    kind = np.where(sizes < 2, sizes, 2 * octave + (sizes >> widths & 1))
    return np.maximum(2 * kind - (values > 0), 0), sizes & ((1 << widths) - 1), widths


def _declassify(classes: Ints, packed: NDArray[np.uint8]) -> Ints:
    kind = (classes + 1) >> 1
    widths = np.maximum((kind >> 1) - 1, 0)
    least = np.where(kind < 2, kind, (2 + (kind & 1)) << widths)
    sizes = least + _unpack(packed, widths)
    return np.where(classes & 1, sizes, -sizes)


def _pack(values: Ints, widths: Ints) -> bytes:
    """Return the lowest `widths` bits of each number, one after the other."""
    ends = np.cumsum(widths)
    owner = np.repeat(np.arange(widths.size), widths)
    place = np.arange(owner.size) - np.repeat(ends - widths, widths)
    return np.packbits((values[owner] >> place & 1).astype(np.uint8), bitorder="little").tobytes()


def _unpack(packed: NDArray[np.uint8], widths: Ints) -> Ints:
    count = int(widths.sum())
    if packed.size != -(-count // 8):
        raise WireError(f"{packed.size} bytes do not hold the {count} bits below the classes of numbers")
    bits = np.unpackbits(packed, bitorder="little").astype(np.int64)
    if bits[count:].any():
        raise WireError("bits that fill up a byte are not 0")
    owner = np.repeat(np.arange(widths.size), widths)
    place = np.arange(count) - np.repeat(np.cumsum(widths) - widths, widths)
    values = np.zeros(widths.size, np.int64)
    np.add.at(values, owner, bits[:count] << place)
    return values


# What a byte of a table stands for: 0 for a class that does not occur, else a weight, with three bits behind its first.
_WEIGHTS = np.array([0, *((8 + code % 8) << (code // 8) for code in range(96))], np.int64)


def _code(counts: Ints) -> NDArray[np.uint8]:
    """Return how often each class occurs as a byte each: the largest weight that is not above its share of all."""
    shares = counts * int(_WEIGHTS[-1]) // max(1, int(counts.max()))
    return np.where(counts > 0, np.maximum(np.searchsorted(_WEIGHTS, shares, "right") - 1, 1), 0).astype(np.uint8)


def _table(code: NDArray[np.uint8]) -> Ints:
    """Return how many of `_SUM` places each class has. Raises WireError for a table that no encoder writes."""
    if code.size and int(code.max()) >= _WEIGHTS.size:
        raise WireError("a table of how often numbers occur holds what no encoder writes")
    weights = np.zeros(_CLASSES, np.int64)
    weights[: code.size] = _WEIGHTS[code]
    if not weights.any():
        weights[0] = 1  # of a group that is empty
    places = np.maximum(weights * (_SUM - _CLASSES) // int(weights.sum()), weights > 0)
    places[int(weights.argmax())] += _SUM - int(places.sum())
    return places
