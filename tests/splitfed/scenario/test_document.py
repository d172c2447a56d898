import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from splitfed.errors import ScenarioError
from splitfed.scenario import Scenario
from splitfed.scenario.document import ASIDE, read
from splitfed.scenario.yaml import write

SMALL = "model: {name: m, cut: 1, image_size: 8}\ndata: {path: digits}\n"


@contextmanager
def refused(*problems: str) -> Iterator[None]:
    with pytest.raises(ScenarioError) as caught:
        yield
    assert caught.value.problems == list(problems)


def values(text: str) -> Any:
    document = read(text, "f.yaml")
    document.raise_problems()
    return document.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("1.", 1.0), (".5", 0.5), ("-3.25e+2", -325.0), ("+1.0", 1.0),
        ("12", 12), ("-7", -7), ("010", 10), ("0o17", 15), ("0xfF", 255),
        ("true", True), ("False", False), ("no", "no"), ("off", "off"), ("yes", "yes"), ("On", "On"), ("y", "y"),
        ("null", None), ("~", None), ("", None), ("Null", None), ("nil", "nil"),
        ("1:30", "1:30"), ("1_000", "1_000"), ("2024-01-02", "2024-01-02"), (".inf", ".inf"), (".nan", ".nan"),
        ("1.2.3", "1.2.3"), ("'5'", "5"), ('"true"', "true"), ("!!str 5", "5"), ("!!float 5", 5.0), ("=", "="),
        ("[1, a, [2]]", [1, "a", [2]]), ("{a: {b: no}}", {"a": {"b": "no"}}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = values(f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert values("1: a\ntrue: b\nnull: c\n") == {"1": "a", "true": "b", "null": "c"}


def test_anchors_and_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: {y: 4, <<: [{z: 5, x: 6}, *a]}\n'<<': e\n"
    assert values(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
        "d": {"x": 6, "y": 4, "z": 5},
        "<<": "e",
    }


def test_aliases_do_not_share_what_an_override_changes() -> None:
    text = """
model: {name: m, cut: 1, image_size: 8}
data: {path: digits}
federation: {clients: 1, rounds: 1}
compression: {smashed: &p {lossless: {kind: zstd, level: 5}}, targets: *p}
"""
    scenario = Scenario.parse(text, overrides=["compression.targets.lossless.level=7"])
    assert scenario.compression.smashed.lossless.level == 5  # type: ignore[union-attr]
    assert scenario.compression.targets.lossless.level == 7  # type: ignore[union-attr]


def test_lines_are_those_of_the_keys() -> None:
    document = read("# a comment\n\na:\n  b: 1\n\n  c: [1,\n      2]\n? d\n: 3\n", "f.yaml")
    lines = {path: origin.place for path, origin in document.origins.items()}
    assert lines == {
        (): "f.yaml:3",
        ("a",): "f.yaml:3",
        ("a", "b"): "f.yaml:4",
        ("a", "c"): "f.yaml:6",
        ("a", "c", 0): "f.yaml:6",
        ("a", "c", 1): "f.yaml:7",
        ("d",): "f.yaml:8",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "f.yaml:1: the file is empty"),
        ("# only\n# comments\n", "f.yaml:1: the file is empty"),
        ("- a\n- b\n", "f.yaml:1: a scenario is a section of keys and values, such as 'seed: 0'"),
        ("\n\nhello\n", "f.yaml:3: a scenario is a section of keys and values, such as 'seed: 0'"),
        ("a: 1\nb:\n\tc: 2\n", "f.yaml:3: not valid YAML: a tab stands where YAML allows only spaces"),
        ("a: 1\n b: 2\n", "f.yaml:2: not valid YAML: mapping values are not allowed here"),
        (
            "a: 1\nb: [1,\nc: 2\nd: 3\n",
            "f.yaml:4: not valid YAML: expected ',' or ']', but got ':' "
            "(while parsing a flow sequence that starts in line 2)",
        ),
        ("a: *b\n", "f.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 1\n", "f.yaml:2: not valid YAML: but found another document (expected a single document in the "
         "stream that starts in line 1)"),
        ("a: 1\nb: \x01\n", "f.yaml:2: the character '\\x01' is not allowed in YAML"),
        ("a:\n  " + "[" * 10_000, "f.yaml:2: not valid YAML: sections and lists stand in each other more than 50 deep"),
        ("- " * 10_000, "f.yaml:1: not valid YAML: sections and lists stand in each other more than 50 deep"),
        ("{a: " * 10_000, "f.yaml:1: not valid YAML: sections and lists stand in each other more than 50 deep"),
        ('a: "\\UFFFFFFFF"\n', None),
    ],
)  # fmt: skip
def test_what_is_not_a_scenario_is_one_line(text: str, problem: str | None) -> None:
    with pytest.raises(ScenarioError) as caught:
        read(text, "f.yaml")
    (line,) = caught.value.problems
    assert "\n" not in line
    assert line == problem or (problem is None and line.startswith("f.yaml:1: not valid YAML: "))


def test_keys_written_twice_are_refused_with_both_lines() -> None:
    text = "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n"
    with refused(
        "f.yaml:5: b.c: written twice, first in line 3",
        "f.yaml:6: a: written twice, first in line 1",
    ):
        values(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/name:os.system x", "f.yaml:1: a: the YAML tag '!!python/name:os.system' is not supported"),
        ("a: !mine {b: 1}", "f.yaml:1: a: the YAML tag '!mine' is not supported"),
        ("a: !!set {b}", "f.yaml:1: a: the YAML tag '!!set' is not supported"),
        ("a: !!int x", "f.yaml:1: a: 'x' is not a whole number that can be used"),
        ("a: !!bool on", "f.yaml:1: a: 'on' is not a boolean that can be used"),
        ("a: 1e999", "f.yaml:1: a: '1e999' is not a number that can be used"),
        ("a: 9223372036854775808", "f.yaml:1: a: '9223372036854775808' is not a whole number that can be used"),
        (f"a: {'9' * 5000}", f"f.yaml:1: a: '{'9' * 40}' is not a whole number that can be used"),
        ("? [a, b]\n: 1", "f.yaml:1: a key must be plain text"),
        ("a: &a [*a]", "f.yaml:1: a.0: an alias stands inside the value that it names"),
        ("a: {<<: 3}", "f.yaml:1: a: '<<' merges sections only"),
    ],
)
def test_values_that_cannot_be_used(text: str, problem: str) -> None:
    with refused(problem):
        values(text)


def test_what_is_deep_by_aliases_or_by_an_override_is_stopped() -> None:
    chain = "a0: &a0 1\n" + "".join(f"a{i}: &a{i} [[[*a{i - 1}]]]\n" for i in range(1, 40))
    with pytest.raises(ScenarioError, match=r"^f.yaml:\d+: sections and lists stand .* 50 deep, aliases written out$"):
        read(chain, "f.yaml")
    for override in ("model.args=" + "[" * 10_000, "a" + ".a" * 10_000 + "=1", "seed=" + "{a: " * 10_000):
        with pytest.raises(ScenarioError, match="more than 50 deep") as caught:
            Scenario.parse(f"{SMALL}federation: {{clients: 3, rounds: 1}}\n", overrides=[override])
        (problem,) = caught.value.problems
        assert len(problem) < 400


def test_keys_of_the_top_that_begin_with_x_are_the_users_own() -> None:
    text = "x-sides: &federation {clients: 3, rounds: 7}\nx-note: [1, 2]\n"
    text += SMALL + "federation: {<<: *federation, rounds: 2}\n"
    scenario = Scenario.parse(text)
    assert (scenario.federation.clients, scenario.federation.rounds) == (3, 2)
    assert Scenario.from_dict(read(text, "f").data | {"x-note": 1}) == scenario
    with pytest.raises(ScenarioError, match=r"^f.yaml:1: model.x-note: unknown key"):
        Scenario.parse("model: {x-note: 1, name: a, cut: 1, image_size: 8}\ndata: {path: digits}\n"
                       "federation: {clients: 1, rounds: 1}\n", "f.yaml")  # fmt: skip


def test_nested_aliases_are_stopped() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ScenarioError, match=r"^f.yaml:\d+: more than 20000 values, aliases written out$"):
        read("\n".join(lines), "f.yaml")


KEYS = st.text().filter(lambda key: not key.startswith(ASIDE))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["1e-4", "no", "1:30", "0x1F", "~", "2024-01-01", "1_0", ".inf", "<<", "=", "\t"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(KEYS, plain, min_size=1, max_size=4))
def test_what_is_written_reads_back_equal(data: dict[str, Any]) -> None:
    text = write(data)
    assert values(text) == data
    assert text.isascii()


@given(st.dictionaries(st.text(st.characters(codec="ascii")), plain, min_size=1, max_size=3))
def test_other_yaml_readers_take_text_for_text_too(data: dict[str, Any]) -> None:
    assert yaml.safe_load(write(data)) == data


broken = st.text(st.sampled_from(list(" \n\t:-?[]{},&*!|>'\"%@#<=~.0123456789aexnotru/\\_\x85\ufeff\x00")), max_size=60)


@given(st.text() | broken)
@example("%YAML 9.9\n---\na: 1")
@example("a: !<tag:yaml.org,2002:merge> b")
@example("!!merge a: b")
@example("? {a: b}\n: c")
@example("{? [a]}")
@example("a: !<!> b")
@example("!!str {a: 1}")
@example("&a : *a")
def test_any_text_reads_or_is_refused_in_single_lines(text: str) -> None:
    problems = []
    try:
        read(text, "f.yaml").raise_problems()
    except ScenarioError as error:
        problems = error.problems
        # a refusal without a reason would be no help
        problems = problems or [""]
    assert all(re.match(r"f\.yaml:\d+: ", line) and len(line.splitlines()) == 1 for line in problems)
