"""What groups of runs are called: in full where there is room, and in a few letters in a picture."""

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

from splitfed.scenario.document import shown


def distinct(named: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return a label for each of some named settings: the name, and where several share it, what tells them apart."""
    labels = []
    for name, settings in named:
        same = [other for title, other in named if title == name]
        telling = [key for key in settings if any(other.get(key, ...) != settings[key] for other in same)]
        parts = dict.fromkeys(f"{_short(key)}={_text(settings[key])}" for key in telling)
        labels.append(f"{name}: {', '.join(parts)}" if parts else name)
    return labels


def short(labels: list[str], named: list[tuple[str, dict[str, Any]]], fits: Callable[[str], bool]) -> list[str]:
    """Return a label that fits for each of some named settings, no two alike: the label that it has, or else as few
    settings as tell it from the others of its name, or else the name, cut, and a number."""
    found = list(labels)
    names = list(dict.fromkeys(name for name, _ in named))
    for name in names:
        rows = [row for row, (title, _) in enumerate(named) if title == name]
        if all(fits(labels[row]) for row in rows):
            continue
        fewest = _fewest([named[row][1] for row in rows])
        choices = [[name]] if len(rows) == 1 else [[f"{name}: {text}" for text in fewest]]
        if len(names) == 1 < len(rows):
            choices.append(fewest)
        few = next((some for some in choices if all(some) and all(map(fits, some))), [name] * len(rows))
        for row, text in zip(rows, few, strict=True):
            found[row] = text
    found = [_cut(text, "", fits) for text in found]
    counts = Counter(found)
    taken = {text for text in found if counts[text] == 1}
    for row, text in enumerate(found):
        if counts[text] > 1:
            numbered = (_cut(text, f" {number}", fits) for number in count(1))
            found[row] = next(some for some in numbered if some not in taken)
            taken.add(found[row])
    return found


def _fewest(several: list[dict[str, Any]]) -> list[str]:
    """Return what some settings are under as few keys as tell each from all others, those first that tell most."""
    keys = list(dict.fromkeys(key for settings in several for key in settings))
    chosen: list[str] = []

    def kinds(keys: list[str]) -> int:
        return len({tuple(_text(settings.get(key)) for key in keys) for settings in several})

    while kinds(chosen) < len(several):
        best = max(keys, key=lambda key: kinds([*chosen, key]))
        if kinds([*chosen, best]) == kinds(chosen):
            break
        chosen.append(best)
    chosen.sort(key=keys.index)
    return [", ".join(_part(key, settings[key]) for key in chosen if key in settings) for settings in several]


def _part(key: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{_short(key)}={_text(value)}"


def _cut(name: str, end: str, fits: Callable[[str], bool]) -> str:
    """Return a name and what follows it, without the name's middle where both do not fit: its end often tells more."""
    text, kept = name, len(name)
    while kept > 2 and not fits(text + end):
        kept -= 1
        text = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
    return text + end


def _short(key: str) -> str:
    *around, last = key.split(".")
    return around[-1] if last == "kind" and around else last


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
