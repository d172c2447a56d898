"""Nested plain values with arrays in them, as tensors and text: what safetensors can hold, without pickle.

Dictionaries, lists, tuples, NumPy arrays, tensors, Flower's ArrayRecords, numbers, texts, booleans and None come back
as they went in.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Tensors under numbers, and JSON that names them.
Flat = tuple[dict[str, Tensor], str]


def flatten(value: Any) -> Flat:
    """Return the arrays of a nested value under numbers, by copy, and the rest as JSON. Raises TypeError, naming the
    place, for what is none of the kinds above."""
    tensors: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> str:
        name = str(len(tensors))
        tensors[name] = tensor.detach().cpu().clone().contiguous()
        return name

    def walk(value: Any, place: str) -> list[Any]:
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return ["value", value]
        if isinstance(value, Tensor):
            return ["tensor", keep(value)]
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return ["array", keep(torch.from_numpy(np.array(value)))]
        if isinstance(value, list | tuple):
            items = [walk(item, f"{place}[{i}]") for i, item in enumerate(value)]
            return ["list" if isinstance(value, list) else "tuple", items]
        if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
            return ["dict", [[key, walk(item, f"{place}[{key!r}]")] for key, item in value.items()]]
        if (arrays := _of_record(value)) is not None:
            return ["record", [[key, walk(item, f"{place}[{key!r}]")] for key, item in arrays.items()]]
        raise TypeError(f"{place} is of type {type(value).__name__}")

    return tensors, json.dumps(walk(value, ""))


def unflatten(tensors: dict[str, Tensor], text: str) -> Any:
    """Undo `flatten`. Raises KeyError, TypeError or ValueError where the two do not go together."""

    def build(kind: str, value: Any) -> Any:
        match kind:
            case "value":
                return value
            case "tensor":
                return tensors[value]
            case "array":
                return tensors[value].numpy()
            case "list":
                return [build(*item) for item in value]
            case "tuple":
                return tuple(build(*item) for item in value)
            case "dict":
                return {key: build(*item) for key, item in value}
            case "record":
                return _record({key: build(*item) for key, item in value})
        raise ValueError(f"unknown kind {kind!r}")

    return build(*json.loads(text))


def not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Yield the place of each array in a nested value that holds NaN or infinity."""
    if isinstance(value, Tensor | np.ndarray):
        numbers = torch.as_tensor(value) if isinstance(value, Tensor) or value.dtype.kind == "f" else None
        if numbers is not None and numbers.is_floating_point() and not bool(numbers.isfinite().all()):
            yield place
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from not_finite(item, f"{place}[{number}]")
    elif isinstance(value, dict) or (value := _of_record(value)) is not None:
        for key, item in value.items():
            yield from not_finite(item, f"{place}[{key!r}]")


def _of_record(value: Any) -> dict[str, np.ndarray] | None:
    from flwr.app import ArrayRecord  # slow to import, and rarely needed

    return {name: array.numpy() for name, array in value.items()} if isinstance(value, ArrayRecord) else None


def _record(arrays: dict[str, np.ndarray]) -> Any:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
