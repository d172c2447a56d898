"""YAML as scenarios are written: PyYAML's parser under the scalars of YAML 1.2, not of 1.1.

`1e-4` is a number, only `true` and `false` are booleans, `no` and `1:30` are text. Infinity and NaN are text too, since
no setting of an experiment can be either.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.nodes import Node

# Far above any real scenario; what it stops is a few lines that take all memory or all of Python's stack.
MOST_DEPTH = 50
TOO_DEEP = f"sections and lists stand in each other more than {MOST_DEPTH} deep"

CORE = "tag:yaml.org,2002:"
_PATTERNS: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("merge", r"^<<$", ["<"]),
)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(None, None, TOO_DEEP, self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML could take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _PATTERNS:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(CORE + _name, re.compile(_pattern), _first)


def _integer(text: str) -> int:
    value = int(text, {"0o": 8, "0x": 16}.get(text[:2].lower(), 10))
    if abs(value) >= 2**63:
        raise ValueError("more than 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")) or value != value:
        raise ValueError("not finite")
    return value


# How the text of a scalar becomes a value, by its tag; ValueError or KeyError when it does not.
SCALARS: dict[str, Callable[[str], Any]] = {
    CORE + "null": lambda text: None,
    CORE + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    CORE + "int": _integer,
    CORE + "float": _float,
    CORE + "str": str,
}


class Unreadable(Exception):
    """A text that is not YAML: the line, counted from 1, and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def compose(text: str) -> Node | None:
    """Parse YAML to nodes; an empty text is None. Raises Unreadable."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        raise Unreadable(line, f"the character {text[e.position : e.position + 1]!r} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        why = e.problem or str(e.context)
        if mark is not None and text[mark.index : mark.index + 1] == "\t":
            why = "a tab stands where YAML allows only spaces"
        elif e.context and e.context_mark and mark and e.context_mark.line != mark.line:
            why += f" ({e.context} that starts in line {e.context_mark.line + 1})"
        raise Unreadable(mark.line + 1 if mark else 1, f"not valid YAML: {why}") from None
    except RecursionError:
        raise Unreadable(1, "nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as e:
        raise Unreadable(1, f"not valid YAML: {e}") from None


def write(sections: dict[str, Any]) -> str:
    """Write plain values as ASCII YAML that reads back equal."""
    return yaml.dump(sections, Dumper=_Dumper, sort_keys=False, width=120)


def write_line(sections: dict[str, Any]) -> str:
    """Write plain values as YAML in one line, as they can follow a key."""
    return yaml.dump(sections, Dumper=_Dumper, sort_keys=False, width=1 << 20, default_flow_style=True).strip()
