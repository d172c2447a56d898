"""The files and folders that a scenario names: by full paths, as they differ between two scenarios, and as others may
know them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from splitfed.scenario.scenario import Scenario

# Keys whose values are paths of files or folders, by section.
PATHS: tuple[tuple[str, ...], ...] = (("data", "path"), ("model", "weights"), ("compression", "reducer", "weights"),
          ("federation", "availability", "file"), ("link", "up"), ("link", "down"))  # fmt: skip
_OF_A_PROFILE: tuple[tuple[str, ...], ...] = (("link", "up"), ("link", "down"))
FINGERPRINTS: tuple[tuple[str, ...], ...] = (("data", "fingerprint"), ("model", "fingerprint"))


def paths(profiles: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield the keys whose values are paths, those of profiles with these names among them."""
    yield from PATHS
    for name in profiles:
        yield from (("federation", "profiles", name, *keys) for keys in _OF_A_PROFILE)


def resolved(scenario: Scenario, near: Path | None = None) -> Scenario:
    """Return the scenario with full paths for all that exists: from the folder `near`, if it is there, else from the
    current one."""
    for keys in paths(scenario.federation.profiles):
        value = _get(scenario, keys)
        if isinstance(value, str) and (path := _full(value, near) or _full(value)) and value != "digits":
            scenario = with_value(scenario, keys, path)
    return scenario


def placeless(scenario: Scenario, beside: Scenario) -> Scenario:
    """Return the scenario without fingerprints, and with the paths of another one where they lead to the same
    places."""
    for keys in FINGERPRINTS:
        scenario = with_value(scenario, keys, None)
    for keys in paths(scenario.federation.profiles):
        here, there = _get(scenario, keys), _get(beside, keys)
        if isinstance(here, str) and isinstance(there, str) and (_full(here) or here) == (_full(there) or there):
            scenario = with_value(scenario, keys, there)
    return scenario


def same_experiment(one: Scenario, other: Scenario) -> bool:
    """Tell whether two scenarios are the same, however they write the paths, and whatever lies there."""
    return placeless(one, other).to_yaml() == placeless(other, other).to_yaml()


def for_clients(scenario: Scenario) -> Scenario:
    """Return what clients elsewhere are told: the last name of a path alone says nothing of the server's folders."""
    for keys in paths(scenario.federation.profiles):
        value = _get(scenario, keys)
        if isinstance(value, str) and value.startswith("/"):
            scenario = with_value(scenario, keys, f"./{Path(value).name}")
    return scenario


def _full(path: str, near: Path | None = None) -> str | None:
    try:
        place = Path(path).expanduser() if near is None else near / path
        return str(place.absolute()) if place.exists() else None
    except (OSError, RuntimeError, ValueError):  # no such user, a name that is too long: told where it is opened
        return None


def _get(section: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        section = section.get(key) if isinstance(section, dict) else getattr(section, key, None)
    return section


def with_value(section: Any, keys: tuple[str, ...], value: Any) -> Any:
    """Return a section with another value at these keys; as it is, where it has no such key."""
    key, *rest = keys
    if isinstance(section, dict):
        return {**section, key: with_value(section[key], tuple(rest), value)} if key in section else section
    if not rest:
        return section.model_copy(update={key: value})
    inside = getattr(section, key)
    if not isinstance(inside, dict) and getattr(inside, rest[0], ...) is ...:
        return section
    return section.model_copy(update={key: with_value(inside, tuple(rest), value)})
