import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT, WANTED

from splitfed.errors import ScenarioError
from splitfed.scenario.scenario import Scenario, shipped
from splitfed.scenario.yaml import write

CODECS = "'float32', 'float16', 'bfloat16', 'float8', 'uniform', 'klt', 'fedlite'"
SMALL = """\
model: {name: vit_tiny_patch16_224, cut: 3, image_size: 8}
data:
  path: digits
federation:
  clients: 10
  rounds: 3
compression:
  reducer: {kind: adc, ratio: 0.1}
  smashed:
    codec: {kind: uniform, bits: 4}
"""


@contextmanager
def refused(*problems: str) -> Iterator[None]:
    with pytest.raises(ScenarioError) as caught:
        yield
    assert caught.value.problems == list(problems)


def parse(text: str = SMALL, *overrides: str) -> Scenario:
    return Scenario.parse(text, "f.yaml", list(overrides))


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


def test_defaults() -> None:
    text = "model: {name: m, cut: 1, image_size: 8}\ndata: {path: digits}\nfederation: {clients: 4, rounds: 1}\n"
    scenario = parse(text)
    assert (scenario.name, scenario.seed, scenario.engine.kind) == ("scenario", 0, "inline")
    assert (scenario.federation.mode, scenario.federation.cohort_size) == ("sfl-v2", 4)
    assert (scenario.federation.local_epochs, scenario.federation.local_steps) == (1, None)
    assert scenario.training.client_state == "reset"
    compression = scenario.compression
    assert compression.reducer.kind == "none"
    for packing in (compression.smashed, compression.targets, compression.cut_gradient, compression.front_weights):
        assert (packing.codec.kind, packing.lossless.kind) == ("float32", "zstd")
    assert (scenario.budget.kind, scenario.checkpoints.keep) == ("none", 2)


def test_all_problems_at_once_with_their_lines() -> None:
    text = """\
seeds: 3
model:
  nam: x
  cutt: 3
  cut: two
  image_size: 0
  args: {a: [1]}
data: {path: digits, validation: 1.5, augment: fli, cache: 3 elephants}
federation:
  clients: 10
  cohort: 20
  rounds: 1.5
  mode: sfl-v3
  local_epochs: 1
  local_steps: 3
training:
  batch_size: "3"
  client: {optimiser: {lr: 3}, device: 3}
  server: 4
  bogus: 4
compression:
  reducer: {kind: adc, kept_sample: 3}
  smashed: {codec: {bits: 4}, lossless: {kind: none, level: 3}}
  targets: {codec: {kind: uniform, bits: 5, extra: 3}}
  cut_gradient: {codec: {kind: uniformm}, lossless: 3}
  front_weights:
    codec:
      bits: 3
      kind: int8
name: a/b
engine: rai
checkpoints: null
budget: {kind: none, more: 1}
"""
    with refused(
        "f.yaml:1: seeds: unknown key, did you mean 'seed'?",
        "f.yaml:2: model.name: is missing",
        "f.yaml:3: model.nam: unknown key, did you mean 'name'?",
        "f.yaml:4: model.cutt: unknown key, did you mean 'cut'?",
        "f.yaml:5: model.cut: must be a whole number, not 'two'",
        "f.yaml:6: model.image_size: must be at least 1, not 0",
        "f.yaml:7: model.args.a: must be a number or true or false or text, not a list",
        "f.yaml:8: data.validation: must be less than 1, not 1.5",
        "f.yaml:8: data.augment: must be 'none', 'flip' or 'paper', not 'fli', did you mean 'flip'?",
        "f.yaml:8: data.cache: '3 elephants' is no number of bytes: write 130MB, 1.5 GiB or 130000000; units are B, "
        "kB, MB, GB, TB, PB, EB and KiB, MiB, GiB, TiB, PiB, EiB",
        "f.yaml:11: federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
        "f.yaml:12: federation.rounds: must be a whole number, not 1.5",
        "f.yaml:13: federation.mode: must be 'sl', 'sfl-v1', 'sfl-v2', 'psl' or 'fl', not 'sfl-v3', "
        "did you mean 'sfl-v1' or 'sfl-v2'?",
        "f.yaml:15: federation.local_steps: local_epochs is set too: keep one of them and set the other to null",
        "f.yaml:17: training.batch_size: must be a whole number, not '3'",
        "f.yaml:18: training.client.device: must be text, not 3",
        "f.yaml:18: training.client.optimiser: 'kind' is missing: one of 'adam', 'sgd'",
        "f.yaml:19: training.server: must be a section, not 4",
        "f.yaml:20: training.bogus: unknown key here, known: 'batch_size', 'precision', 'client', 'server', "
        "'head_lr', 'client_state', 'ahead', 'evaluate_every', 'eval_batch_size'",
        "f.yaml:22: compression.reducer.kept_sample: unknown key, did you mean 'kept_samples'?",
        f"f.yaml:23: compression.smashed.codec: 'kind' is missing: one of {CODECS}",
        "f.yaml:23: compression.smashed.lossless.level: unknown key for kind 'none', it belongs to 'zstd'",
        "f.yaml:24: compression.targets.codec.bits: must be 2, 3, 4, 6 or 8, not 5",
        "f.yaml:24: compression.targets.codec.extra: unknown key for kind 'uniform', known: 'bits', 'levels', "
        "'rounding', 'scale', 'scale_bits', 'rotation'",
        f"f.yaml:25: compression.cut_gradient.codec: unknown kind 'uniformm', known: {CODECS}, did you mean 'uniform'?",
        "f.yaml:25: compression.cut_gradient.lossless: must be one of 'zstd', 'none' or a section of such a kind, "
        "not 3",
        f"f.yaml:29: compression.front_weights.codec: unknown kind 'int8', known: {CODECS}, "
        "and no installed package brings it",
        "f.yaml:30: name: 'a/b' cannot name a folder: use letters, digits, '-' and '_', 100 at most",
        "f.yaml:31: engine: unknown kind 'rai', known: 'inline', 'ray', 'deployment', did you mean 'ray'?",
        "f.yaml:32: checkpoints: must be a section, not null",
        "f.yaml:33: budget.more: unknown key for kind 'none', it has no keys",
    ):
        parse(text)


def test_a_missing_section_points_to_the_top() -> None:
    with refused("f.yaml:2: model: is missing", "f.yaml:2: data: is missing", "f.yaml:2: federation: is missing"):
        parse("# nothing yet\nseed: 3\n")


def test_what_is_read_and_what_is_checked_are_reported_together() -> None:
    with refused(
        "f.yaml:5: federation.clients: must be greater than 0, not 0",
        "f.yaml:7: federation.rounds: written twice, first in line 6",
        "f.yaml:8: compression.reducer: give ratio, or both kept_samples and kept_tokens",
        "--set seed=-1: seed: must be at least 0, not -1",
    ):
        text = "\n".join([
            "model: {name: m, cut: 1, image_size: 8}", "data: {path: digits}", "", "federation:", "  clients: 0",
            "  rounds: 3", "  rounds: 4", "compression: {reducer: adc}",
        ])  # fmt: skip
        parse(text, "seed=-1")


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (["seed=7"], {"seed": 7}),
        (["model.cut=2", "model.cut = 4"], {"model": {"cut": 4}}),
        (["training.client.optimiser={kind: sgd, lr: 1e-3}"], {"training": {"client": {"optimiser": {"lr": 1e-3}}}}),
        (["compression.reducer=none"], {"compression": {"reducer": {"kind": "none"}}}),
        (["compression.reducer.ratio=0.5"], {"compression": {"reducer": {"kind": "adc", "ratio": 0.5}}}),
        (["compression.smashed.codec.kind=float16"], {"compression": {"smashed": {"codec": {"kind": "float16"}}}}),
        (
            ["compression.targets.lossless.kind=zstd", "compression.targets.lossless.level=9"],
            {"compression": {"targets": {"lossless": {"kind": "zstd", "level": 9}}}},
        ),
        (
            ["compression.reducer=adc", "compression.reducer.ratio=0.3"],
            {"compression": {"reducer": {"kind": "adc", "ratio": 0.3}}},
        ),
        (
            ["compression.reducer.kept_tokens=0.3", "compression.reducer.kind=discard_tokens"],
            {"compression": {"reducer": {"kind": "discard_tokens", "kept_tokens": 0.3}}},
        ),
        (["data.path=a=b.parquet"], {"data": {"path": "a=b.parquet"}}),
        (["data.path='007'"], {"data": {"path": "007"}}),
        (["model.args.drop_path_rate=0.1"], {"model": {"args": {"drop_path_rate": 0.1}}}),
        (["federation.local_steps=5"], {"federation": {"local_steps": 5, "local_epochs": None}}),
        (["federation.cohort=3", "federation.cohort="], {"federation": {"cohort": None}}),
    ],
)
def test_overrides(overrides: list[str], change: dict[str, Any]) -> None:
    def check(found: Any, wanted: Any) -> None:
        if isinstance(wanted, dict):
            for key, value in wanted.items():
                check(found[key], value)
        else:
            assert found == wanted

    check(parse(SMALL, *overrides).model_dump(), change)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.cutt=3", "model.cutt: unknown key, did you mean 'cut'?"),
        ("modl.cut=3", "modl: unknown key, did you mean 'model'?"),
        ("federation.rounds=abc", "federation.rounds: must be a whole number, not 'abc'"),
        ("federation.rounds=", "federation.rounds: must be a whole number, not null"),
        ("seed", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("model..cut=3", "write it as section.key=value"),
        ("model.name.x=3", "model.name: is 'vit_tiny_patch16_224', not a section that could hold 'x'"),
        ("model.cut.x=3", "model.cut: is 3, not a section that could hold 'x'"),
        ("seed=[1", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed=!x 3", "seed: the YAML tag '!x' is not supported"),
        ("data={path: digits, path: x}", "data.path: written twice, first in line 1"),
        (
            "compression.reducer.kind=merge_samples",
            "compression.reducer.kept_samples: is missing",
        ),
        (
            "compression.targets.codec.bits=4",
            f"compression.targets.codec: 'kind' is missing: one of {CODECS}",
        ),
        (
            "compression.smashed.lossless={kind: zstd, shuffle: 3}",
            "compression.smashed.lossless.shuffle: must be true or false or 'channels', not 3",
        ),
        ("engine=rai", "engine: unknown kind 'rai', known: 'inline', 'ray', 'deployment', did you mean 'ray'?"),
        ("engine.client_cpus=2", "engine.client_cpus: unknown key for kind 'inline', it belongs to 'ray'"),
    ],
)
def test_a_refused_override_is_named(override: str, problem: str) -> None:
    with refused(f"--set {override}: {problem}"):
        parse(SMALL, override)


def test_an_index_into_a_list_is_explained() -> None:
    text = changed("image_size: 8", "image_size: 8, args: {a: [1, 2]}")
    with refused(
        "f.yaml:1: model.args.a: must be a number or true or false or text, not a list",
        "--set model.args.a.5=1: model.args.a.5: there is no item 5, the list has 2, counted from 0",
        "--set model.args.a.x=1: model.args.a.x: the list has no key 'x', only items, counted from 0",
    ):
        parse(text, "model.args.a.5=1", "model.args.a.x=1", "model.args.a.1=7")


def test_setting_a_kind_drops_the_keys_of_the_old_one_only() -> None:
    scenario = parse(SMALL, "compression.smashed.codec.kind=uniform")
    assert scenario.compression.smashed.codec.bits == 4  # type: ignore[union-attr]
    with refused(
        "--set compression.smashed.codec.bits=3: compression.smashed.codec.bits: unknown key for kind 'float32', "
        "it belongs to 'uniform'"
    ):
        parse(SMALL, "compression.smashed.codec.kind=float32", "compression.smashed.codec.bits=3")


def test_local_steps_instead_of_epochs() -> None:
    scenario = parse(changed("rounds: 3", "rounds: 3\n  local_steps: 5"))
    assert (scenario.federation.local_epochs, scenario.federation.local_steps) == (None, 5)
    other = scenario.with_(["federation.local_steps=null", "federation.local_epochs=2"])
    assert (other.federation.local_epochs, other.federation.local_steps) == (2, None)


def test_with_leaves_the_original_alone() -> None:
    scenario = parse()
    assert scenario.with_(["seed=9"]).seed == 9
    assert scenario.seed == 0
    assert scenario.with_([]) == scenario
    with refused("--set seed=x: seed: must be a whole number, not 'x'"):
        scenario.with_(["seed=x"])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", " a", "a.", "a\n", "x" * 101, 'a"', "\ud800"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ScenarioError, match=r"^f.yaml:1: name: ") as caught:
        parse(write({"name": name}) + SMALL)
    caught.value.problems[0].encode()


def test_every_shipped_scenario_loads_by_name_and_round_trips() -> None:
    root = ROOT / "scenarios"
    names = sorted(path.stem for path in root.glob("*.yaml"))
    assert sorted(shipped()) == names
    assert {"digits", "digits-uncompressed", "cifar100", "cifar100-cpu", "cifar100-paper"} <= set(names)
    for name in names:
        scenario = Scenario.load(name, WANTED.get(name, ()))
        assert scenario.name == name
        assert scenario == Scenario.load(root / f"{name}.yaml", WANTED.get(name, ()))
        again = Scenario.parse(scenario.to_yaml())
        assert again == scenario
        assert again.to_yaml() == scenario.to_yaml()


def test_photographs_are_the_users_to_name() -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.load("photos")
    (told,) = caught.value.problems
    assert re.fullmatch(r".*photos\.yaml:\d+: data\.path: is missing: name a folder.* with --set data\.path=PATH", told)


def test_the_baseline_of_digits_differs_in_compression_only() -> None:
    ours, baseline = Scenario.load("digits"), Scenario.load("digits-uncompressed")
    plain = {"codec": {"kind": "float32"}, "lossless": {"kind": "none"}}
    assert baseline.compression.model_dump(exclude={"tail_smashed", "tail_gradient", "cache"}) == {
        "reducer": {"kind": "none"}, "targets": plain, "parts": plain,
        "smashed": {**plain, "delta": False, "skip": None}, "cut_gradient": {**plain, "delta": False},
        "front_weights": {**plain, "delta": False, "initial": "send"},
    }  # fmt: skip
    other = {"name", "compression"}
    assert ours.model_dump(exclude=other) == baseline.model_dump(exclude=other)


def test_a_file_that_exists_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Scenario.load("digits").federation.clients == 10
    (tmp_path / "digits").write_text(changed("clients: 10", "clients: 4"))
    assert Scenario.load("digits").federation.clients == 4
    assert Scenario.load("digits").name == "digits"


def test_the_name_is_the_files_unless_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert Scenario.load(path).name == "mine"
    assert Scenario.load(path, ["name=other"]).name == "other"
    path.write_text("name: written\n" + SMALL)
    assert Scenario.load(path).name == "written"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a b.yaml", "a b"), ("-x.yaml", "-x"), ("[red] (1).yaml", "[red] (1)"), ("a\nb.yaml", "a-b"),
        (b"l\xe4ufe.yaml", "l-ufe"), ("läufe.yaml", "läufe"), ("what?.yaml", "what-"), (".yaml", "yaml"),
        ("...yaml", "scenario"), ("ä" * 120 + ".yaml", "ä" * 50), ("x" * 200 + ".yaml", "x" * 100),
    ],
)  # fmt: skip
def test_a_scenario_is_named_for_its_file_whatever_that_is_called(
    file: str | bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(file)
    Path(path).write_text(SMALL)
    scenario = Scenario.load(path)
    assert scenario.name == name
    assert parse(scenario.to_yaml()) == scenario
    Path(path).write_text("bogus: 1\n" + SMALL)
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("value", ["20 megabytes", "-5MB", "9" * 400 + "EB", "", "MB", "1 MB 2", "-1", "1e3MB"])
def test_what_is_no_number_of_bytes_is_told_with_the_units(value: str) -> None:
    with pytest.raises(ScenarioError, match=r"bytes: .* is no number of bytes.*: write 130MB, .*; units are B, kB, "):
        parse(SMALL + f"budget: {{kind: cut_bytes, bytes: '{value}'}}\n")


def test_bytes_below_zero() -> None:
    with refused(f"f.yaml:{SMALL.count(chr(10)) + 1}: budget.bytes: must be greater than 0, not -5"):
        parse(SMALL + "budget: {kind: cut_bytes, bytes: -5}\n")


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.yaml").write_text("")
    with refused("latin.yaml: not UTF-8 text: byte 8 is 0xf6"):
        Scenario.load(str(tmp_path / "latin.yaml"))
    with refused("folder: cannot be read: Is a directory"):
        Scenario.load("folder")
    with refused("nothing.yaml: cannot be read: No such file or directory"):
        Scenario.load("nothing.yaml")
    with refused("a\\x00b.yaml: cannot be read: embedded null byte"):
        Scenario.load("a\0b.yaml")
    with refused("empty.yaml:1: the file is empty"):
        Scenario.load(Path("empty.yaml"))
    with refused("digit: no such file, and no scenario of this name ships with splitfed; did you mean 'digits'?"):
        Scenario.load("digit")
    with refused(
        "zzzz: no such file, and no scenario of this name ships with splitfed; those that do: " + ", ".join(shipped())
    ):
        Scenario.load("zzzz")


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["adc", "none", "uniform", "zstd", "inline", "kind", "sgd", "130MB"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["kind", "ratio", "bits", "lr", "x", "codec"]) | st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip
COMPLETE = parse().model_dump(mode="json")


def paths(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from paths(value, (*path, key))


def loads_or_lines(text: str, overrides: list[str], where: str) -> None:
    scenario, problems = None, []
    try:
        scenario = Scenario.parse(text, "f.yaml", overrides)
    except ScenarioError as error:
        problems = error.problems
    assert (scenario is None) == bool(problems)
    for line in problems:
        assert re.match(where, line)
        assert len(line.splitlines()) == 1
        assert "Input" not in line
        line.encode()
    if scenario is not None:
        assert Scenario.parse(scenario.to_yaml()) == scenario


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(list(paths(COMPLETE))), st.none() | st.text(max_size=3), junk), max_size=4))
def test_any_change_of_a_scenario_loads_or_is_refused(changes: list[tuple[tuple[str, ...], str | None, Any]]) -> None:
    data = copy.deepcopy(COMPLETE)
    for path, extra, value in changes:
        holder = data
        for key in path[:-1]:
            holder = holder[key] if isinstance(holder, dict) and isinstance(holder.get(key), dict) else {}
        holder[path[-1] if extra is None else extra] = value
    loads_or_lines(write(data), [], r"f\.yaml:\d+: ")


keys = st.sampled_from([".".join(path) for path in paths(COMPLETE)]) | st.text(max_size=6)
written = junk.map(lambda value: write({"v": value})[2:].strip()) | st.text(max_size=5)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(keys, st.sampled_from(["", ".kind", ".x", ".0"]), written), max_size=4))
def test_any_overrides_load_or_are_refused(overrides: list[tuple[str, str, str]]) -> None:
    loads_or_lines(SMALL, [f"{path}{more}={value}" for path, more, value in overrides], r"(--set |f\.yaml:\d+: )")


@settings(deadline=None, max_examples=100)
@given(st.text(), st.lists(st.text(), max_size=2))
def test_any_text_loads_or_is_refused(text: str, overrides: list[str]) -> None:
    loads_or_lines(text, overrides, r"(--set |f\.yaml:\d+: )")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("federation.order=arrival", "federation.order: with sl clients train one after another"),
        ("federation.strategy=FedMedian", "federation.strategy: FedMedian: with sl nothing is aggregated"),
    ],
)
def test_split_learning_in_turn_takes_neither_another_order_nor_a_strategy(override, problem):
    with pytest.raises(ScenarioError, match=problem):
        Scenario.parse(SMALL, overrides=["federation.mode=sl", override])
