"""Where clients run, and how patient the server is with them: the `engine` section of a scenario."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from splitfed.config import Config, kind_shorthand


class Inline(Config):
    """All clients and the server in one process, client by client."""

    kind: Literal["inline"] = "inline"
    threads: PositiveInt | None = None
    """Threads of torch; null lets torch choose. Figures repeat only where they are the same."""


class Remote(Config):
    """What engines share whose clients are other processes."""

    threads: PositiveInt | None = None
    """Threads of torch in each process; null lets torch choose. Figures repeat only where they are the same."""
    grace: NonNegativeFloat = 10.0
    """Seconds within which a client whose stream broke may come back and go on where it was; after that it is lost to
    the round."""
    deadline: PositiveFloat = 600.0
    """Seconds that one mini-batch may take: the server ends the stream of a client that sends nothing for so long, and
    a client gives up a server that does not answer."""


class Ray(Remote):
    """Flower's simulation engine: clients in Ray actors.

    At once train as many clients as fit, and no more than 32 or this machine's cores and four: Flower's own limit."""

    kind: Literal["ray"] = "ray"
    threads: PositiveInt | None = None
    """Threads of torch in each actor; null is `client_cpus`. Figures repeat only where they are the same."""
    client_cpus: PositiveInt = 1
    """Cores of each actor."""
    client_gpus: NonNegativeFloat = 0.0
    """GPUs of each actor, a share of one or whole ones; with 0 clients train on CPUs."""
    address: str | None = None
    """Cluster to run on: `host:port` as its machines name it, of which this is one, or `auto` for the one that runs
    here; null starts Ray on this machine for the run."""

    @field_validator("client_gpus")
    @classmethod
    def _a_share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"{gpus:g} GPUs cannot be had: take a share of one, or a whole number")
        return gpus

    @field_validator("address")
    @classmethod
    def _of_a_cluster(cls, address: str | None) -> str | None:
        host, _, port = (address or "auto").rpartition(":")
        if address not in (None, "auto") and ("/" in host or not host or not port.isdecimal()):
            raise ValueError(f"{address!r} is no address: write host:port, or auto")
        return address


class Deployment(Remote):
    """Real clients on other machines; set by `splitfed serve`."""

    kind: Literal["deployment"] = "deployment"
    silence: float = Field(60.0, ge=10)
    """Seconds after which a client that gives no sign of life is away: it is lost to its round, whatever it was asked
    for, and may come back in a later one. Each client gives one every 4 s, also while it loads and computes; one that
    lost its power is taken again only after this time."""


def _inline_unless_said(value: Any) -> Any:
    return {"kind": "inline", **value} if isinstance(value, dict) else value


EngineConfig = Annotated[
    Inline | Ray | Deployment, Field(discriminator="kind"), BeforeValidator(_inline_unless_said), kind_shorthand
]
