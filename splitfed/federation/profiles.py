"""Which clients are alike: how many of each kind there are, how they are connected, and what they compute with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from splitfed.config import Bytes, Config
from splitfed.link.quantities import Speed
from splitfed.link.settings import LinkConfig, Links, LinkSettings
from splitfed.seeds import Key


class Device(Config):
    """What a machine computes with."""

    flops: Speed | None = None
    """Floating-point operations a second that it comes to in training, such as 5GFLOPS: a mini-batch takes what its
    operations need. Null does not tell; then computing takes what `availability.step_seconds` says, or no time."""


class ClientDevice(Device):
    """What a client computes with."""

    memory: Bytes | None = None
    """What its memory holds, such as 2GB: `--dry-run` tells whether a client's part fits, and which mini-batch
    would. Null does not tell."""


class Profile(Config):
    """A kind of client: what is not said here is as for all."""

    share: float = Field(gt=0, le=1)
    """Share of the clients that are of this kind; which ones is drawn from the seed, or in a deployment theirs to say
    (`splitfed join --profile`). The shares of all profiles make 1."""
    link: LinkConfig | None = None
    """The link of such clients; null is the scenario's `link`."""
    device: ClientDevice = ClientDevice()
    """What such clients compute with."""
    cut: int | None = Field(None, ge=1)
    """Blocks of the front that such clients hold, a few where they are weak; null is `model.cut`. The back begins after
    the smallest cut, and what a client sends enters it where its front ends. A block that is in some fronts and in the
    back becomes their mean, by the images that went through each."""


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
Profiles = Mapping[str, Profile]


def dealt(profiles: Profiles, clients: int, key: Key) -> tuple[str, ...]:
    """Return the profile of each client, drawn from this key: of each as many as its share says, to one client; without
    profiles all have the empty name."""
    if not profiles:
        return ("",) * clients
    names = list(profiles)
    exact = [profile.share * clients for profile in profiles.values()]
    counts = [math.floor(number + 1e-9) for number in exact]
    by_rest = sorted(range(len(names)), key=lambda place: (counts[place] - exact[place], place))
    for place in by_rest[: clients - sum(counts)]:
        counts[place] += 1
    cards = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    order = key.numpy().permutation(clients)
    return tuple(cards[place] for place in order)


def links(profiles: Profiles, common: LinkSettings, held: Sequence[str], key: Key, folder: Path) -> Links:
    """Return the link of each client of a run in this folder, as its profile says that it has of those `held`, or else
    the one that is `common` to all. Raises ScenarioError where a recording cannot be read."""
    found = {"": common.open(key, folder, "link")}
    for name, profile in profiles.items():
        found[name] = profile.link.open(key, folder, f"link-{name}") if profile.link else found[""]
    return lambda client: found[held[client]](client)
