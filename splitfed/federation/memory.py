"""The settings of memory: what the server keeps of smashed data, to train the back on without the clients."""

from typing import Literal

from pydantic import Field, PositiveInt

from splitfed.config import Bytes, Config


class Memory(Config):
    """In the last phase, which is frozen, each client sends each of its images once, in all or some of its fixed
    variants (`data.variants`), and the server keeps what arrives. Once nobody who is there has anything left to send, a
    round is a pass over memory: the back trains on all of it, shuffled across clients, who have no part in it.

    A pass counts as a round, with its row, its checkpoint and its place in the schedule, and sends no bytes.
    """

    disk: Bytes = 2_000_000_000
    """What memory may take on the server's disk: `2GB`, or a number of bytes. What does not fit is not kept, and that
    is told."""
    store: Literal["coded", "float16"] = "coded"
    """How it is kept: as it was sent (`coded`), or decoded, in 16 bits a number (`float16`), which takes more disk and
    spares decoding in each pass."""
    keep: Literal["all", "joined"] = "all"
    """Whose samples the passes go over: those of all who ever sent any, or of those alone who are `joined` now. Who has
    left is forgotten then, and sends anew when it comes back."""
    variants: PositiveInt | None = None
    """How many of an image's fixed variants are kept: with 1 each image is sent once, and it is drawn which variant it
    shows then. Null is all, `data.variants`."""
    passes: PositiveInt | None = None
    """After how many passes the run ends; null is as many as rounds are left."""
    mix: float = Field(0.0, ge=0, le=100)
    """Strength of mixup in passes (arXiv 1710.09412): the alpha of the beta distribution from which it is drawn how two
    samples and their labels are mixed. 0 is none."""
    drop_tokens: float = Field(0.0, ge=0, lt=1)
    """Share of the patch tokens that are left out of each mini-batch in passes, drawn at random (arXiv 2208.07220)."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing in passes: the share of a label that is spread over all classes."""
