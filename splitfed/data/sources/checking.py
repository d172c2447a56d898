"""Which images of a source cannot be decoded: all of them are looked at, and all that are wrong are named."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from splitfed.data.sources.base import Undecodable
from splitfed.errors import DataError

_SHOWN = 20


def undecodable(count: int, look: Callable[[int], object]) -> dict[int, Undecodable]:
    """Look at so many rows, each by `look`, which decodes it, and return what is wrong with those that cannot be."""

    def wrong(row: int) -> Undecodable | None:
        try:
            look(row)
        except Undecodable as error:
            return error
        return None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # decoders work outside of Python's lock
        found = threads.map(wrong, range(count))
        return {row: error for row, error in enumerate(found) if error is not None}


def refusal(errors: Iterable[Undecodable]) -> DataError:
    """Return the error that names all images that cannot be decoded, one for each line; of very many it names the first
    ones, and says how many more there are."""
    listed = list(errors)
    if len(listed) == 1:
        return listed[0]
    lines = [f"{error.where}: {error.why}" for error in listed[:_SHOWN]]
    if len(listed) > _SHOWN:
        lines.append(f"and {len(listed) - _SHOWN:,} more")
    return DataError(
        f"data.path: {len(listed):,} images cannot be decoded; repair or remove them, or leave them out with "
        f"data.on_bad: skip:\n" + "\n".join(f"  {line}" for line in lines)
    )
