"""How a client's stream ends: it says how many bytes it counts both ways, `end`; the server counts as many, `done`."""

from splitfed.compression.expect import Expected
from splitfed.errors import WireError
from splitfed.run.ledger import Sizes
from splitfed.split.computing.rehearsal import PLACE, Crossed
from splitfed.wire.frame import Frame, Packed, Place, pack, unpack
from splitfed.wire.header import Scalar

END, DONE = "end", "done"
ENDING: dict[str, Expected] = {END: {}}  # beside the kinds of frames that an end may come after
_MOST_BYTES = 1 << 16


def pack_end(place: Place, up: int, down: int) -> Packed:
    """Encode the end of a stream on which so many bytes went up and down before it; `place` is one step after the
    last."""
    return pack(END, *place, {}, {"up": up, "down": down})


def counted(frame: Frame) -> tuple[Scalar | None, Scalar | None]:
    """Return the bytes up and down that an `end` frame says, whatever a peer has written there."""
    return frame.meta.get("up"), frame.meta.get("down")


def pack_done(place: Place) -> Packed:
    """Encode what answers an `end` frame."""
    return pack(DONE, *place, {})


def unpack_done(buffer: bytes, step: int) -> None:
    """Check the answer to the end of this step. Raises WireError for anything else."""
    done = unpack(buffer, {DONE: {}}, max_bytes=_MOST_BYTES)
    if done.step != step:
        raise WireError(f"the end of step {step} was answered with step {done.step}")


def rehearse() -> list[Crossed]:
    """Return which way the two frames that end a stream go, and what each adds to the ledger."""
    end, done = pack_end(PLACE, 1 << 30, 1 << 30), pack_done(PLACE)
    return [("up", {"envelope": Sizes(sent=end.envelope)}), ("down", {"envelope": Sizes(sent=done.envelope)})]
