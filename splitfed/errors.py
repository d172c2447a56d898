"""Every error that splitfed raises on purpose; the command line prints its text and exits with code 2."""

from collections.abc import Sequence


class SplitfedError(Exception):
    """Base of all errors of this package; its text is written for the user."""


class ScenarioError(SplitfedError):
    """A scenario that cannot be read or is refused; `problems` holds one line per mistake, all of them at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ModelError(SplitfedError):
    """A model that cannot be built, loaded, split or read."""


class DataError(SplitfedError):
    """A data set that cannot be loaded, or does not fit the scenario."""


class CodecError(SplitfedError):
    """A tensor that a codec cannot carry: NaN, infinity, or a value outside its range."""


class Diverged(SplitfedError):
    """Training that diverges `where` (round, client, step): a `problem` such as "the loss is NaN or infinite", and
    which sides' learning rates are to be lowered."""

    def __init__(self, where: str, problem: str, sides: Sequence[str] = ("client", "server")) -> None:
        self.where, self.problem, self.sides = where, problem, sides
        keys = " or ".join(f"training.{side}.optimiser.lr" for side in sides)
        super().__init__(f"{where}: the training diverges, {problem}: lower {keys}")


class Refused(Diverged):
    """The server's last word to a client: with numbers that it sent, or that it brought about, no training goes on."""


class WireError(SplitfedError):
    """Bytes from a peer that are not a message we accept: truncated, altered, too large or not expected."""


class Unreached(WireError):
    """A peer that does not answer, or not any more."""


class Late(WireError):
    """What comes when nobody waits for it any more, or has come before."""


class NotFinite(WireError):
    """A peer's numbers that are NaN, infinite, or more than their type holds."""


class Lacking(SplitfedError):
    """A client has not, or not any more, what a message of the server's builds on."""


class RunError(SplitfedError):
    """A run folder that cannot be created, locked, resumed or read."""


class StrategyError(RunError):
    """A strategy that raises at the replies of a round: the fault may be its own, or lie in what a client sent."""


class WriteError(RunError):
    """A file that cannot be written: the disk is full, the folder is read-only, a folder stands in its place."""


class TlsError(SplitfedError):
    """Certificates or keys that are missing, broken, expired, readable by others, or not made for each other."""
