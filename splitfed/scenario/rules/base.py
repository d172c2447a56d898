"""What a rule is, and how the keys are told that break one."""

from collections.abc import Callable, Iterator

Found = Iterator[tuple[str, str]]
Rule = Callable[..., Found]


def leave_out(section: str, keys: list[str], why: str, or_else: str = "") -> Found:
    """Yield the keys of a section that one cause makes idle: as one problem, of the section where they are several."""
    if len(keys) == 1:
        yield f"{section}.{keys[0]}", f"{why}: leave it out{or_else}"
    elif keys:
        yield section, f"{why}: leave out {', '.join(keys[:-1])} and {keys[-1]}{or_else}"
