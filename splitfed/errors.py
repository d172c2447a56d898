"""Every error that splitfed raises on purpose; the command line prints its text and exits with code 2."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# What a client that trains on a folder of images does without, by the name under which it is imported: what it is
# installed as, and what needs it.
_OPTIONAL = {
    "datasets": ("datasets", "a data set that is no client's folder of images"),
    "flwr_datasets": ("flwr-datasets", "dividing a data set among clients"),
    "matplotlib": ("matplotlib", "a picture"),
    "pandas": ("pandas", "a data set that is no client's folder of images"),
    "peft": ("peft", "model.adapter: lora"),
    "pyarrow": ("pyarrow", "a table of images"),
    "ray": ("ray", "the engine ray"),
    "sklearn": ("scikit-learn", "the data set digits"),
    "tensorboard": ("tensorboard", "a run's curves"),
}


class SplitfedError(Exception):
    """Base of all errors of this package; its text is written for the user."""


class Missing(SplitfedError):
    """A package that is not installed here; `error` is what its import raised."""

    def __init__(self, error: ModuleNotFoundError) -> None:
        module = (error.name or "").partition(".")[0]
        package, what = _OPTIONAL.get(module, (module, "what was asked for"))
        super().__init__(
            f"{package} is not installed, and {what} needs it: pip install {package}, or all of splitfed: "
            "pip install splitfed"
        )


@contextmanager
def telling_missing() -> Iterator[None]:
    """Raise Missing where the block imports a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "splitfed").partition(".")[0]
        if module == "splitfed" or sys.modules.get(module) or module in sys.stdlib_module_names:
            raise  # it is there, and lacks a module that it should have
        raise Missing(error) from error


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
