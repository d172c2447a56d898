"""What the server keeps of the samples of all clients, where smashed data or gradients cross as differences, or samples
are skipped: the copies that a client and it both have since the round in which it was last taken."""

from logging import getLogger
from typing import Any

from torch import Tensor

from splitfed.split.copies import Copies, Entry, flat, unflat
from splitfed.split.cut import Cut

log = getLogger("splitfed")


class Caches:
    """The copies of all clients, as the last finished round of each left them."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._kept: dict[int, dict[int, Entry]] = {}
        self._told = False

    def open(self, client: int) -> Copies | None:
        """Return a client's copies for a round; None where none are kept."""
        return self._cut.copies(self._kept.get(client))

    def commit(self, client: int, copies: Copies | None) -> None:
        """Keep what a round that counts has made of a client's copies."""
        if copies is None:
            return
        self._kept[client] = copies.now
        if copies.full and not self._told:
            self._told = True
            log.warning(
                "compression.cache.disk: client %d has room for %d samples: all others are sent whole at each visit",
                client, len(copies.now),
            )  # fmt: skip

    def forget(self, client: int) -> None:
        """Hear that a client has lost its copies: both begin anew."""
        self._kept.pop(client, None)

    def clear(self) -> None:
        """Keep nothing of anyone any more."""
        self._kept = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return all copies, under `<client>/` and the names that `flat` gives them."""
        found = {client: flat(kept) for client, kept in sorted(self._kept.items()) if kept}
        return {f"{client}/{name}": tensor for client, tensors in found.items() for name, tensor in tensors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            client, what = name.split("/", 1)
            found.setdefault(int(client), {})[what] = tensor
        self._kept = {client: unflat(tensors) for client, tensors in found.items()}
