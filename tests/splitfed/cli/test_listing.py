"""What can be listed: all of it, from the classes that scenarios are read with."""

import io

import pytest
import rich.console

from splitfed.cli.listing.kinds import SORTS, Listed, entries, show, sorts
from splitfed.cli.main import app
from splitfed.compression.reducers.registry import ReducerConfig
from splitfed.errors import SplitfedError
from splitfed.federation.memory import Memory
from splitfed.scenario.problems import kind, sections
from splitfed.scenario.scenario import Scenario, shipped

BASE = """
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 8}
data: {path: digits}
federation: {clients: 3, rounds: 2}
"""


def named(what: str, pattern: str = "*") -> dict[str, Listed]:
    return {entry.name: entry for entry in entries(what, pattern)}


@pytest.mark.parametrize("what", [what for what in SORTS if what != "models"])
def test_everything_has_a_name_and_a_sentence(what: str) -> None:
    found = entries(what)
    assert len({entry.name for entry in found}) == len(found) > 0
    for entry in found:
        assert len(entry.text.split()) > 2, entry.name
        assert "\n" not in entry.line()


def test_every_reducer_is_listed_and_names_its_source() -> None:
    found = named("reducers")
    assert list(found) == [kind(config) for config in sections(ReducerConfig)]
    for name, entry in found.items():
        assert (name == "none") == (not entry.source), f"{name}: its docstrings name no paper"
    assert found["adc"].source == "arXiv 2509.15058"


def test_keys_stand_with_their_defaults_and_choices() -> None:
    assert named("reducers")["discard_tokens"].keys == "kept_tokens=?"
    assert "bits=8{2,3,4,6,8} levels=null rounding=stochastic{stochastic,nearest}" in named("codecs")["uniform"].keys
    assert named("engines")["inline"].keys == "threads=null"
    assert named("codecs")["float32"].keys == ""


@pytest.mark.parametrize(
    ("what", "key"),
    [("codecs", "compression.smashed.codec"), ("lossless", "compression.smashed.lossless"), ("engines", "engine"),
     ("modes", "federation.mode"), ("phases", "phases")],
)  # fmt: skip
def test_scenarios_take_what_is_listed(what: str, key: str) -> None:
    for name in named(what):
        Scenario.parse(BASE, overrides=[f"{key}=[{name}]" if key == "phases" else f"{key}={name}"])


def test_phases_and_memory_are_listed_with_what_each_key_means() -> None:
    local, frozen = (named("phases")[name] for name in ("local", "frozen"))
    assert local.keys == "rounds=null blocks=1 upload_every=5 align_every=0"
    assert dict(local.told)["align_every"].startswith("Of how many mini-batches that go up one is answered")
    assert "2507.15816" in local.line()
    assert [key for key, _ in frozen.told] == ["rounds"]
    found = named("memory")
    assert list(found) == list(Memory.model_fields)
    assert found["store"].line().endswith("decoding in each pass.  store=coded{coded,float16}")


def test_scenarios_are_listed_by_the_first_sentence_of_their_file() -> None:
    found = named("scenarios")
    assert list(found) == list(shipped())
    assert found["digits"].text.startswith("Ten clients learn to read handwritten digits")


@pytest.mark.parametrize(
    ("what", "pattern", "told"),
    [
        ("reducers", "adcc", "reducers: none is named 'adcc', did you mean 'adc'? see all: splitfed list reducers"),
        ("modes", "sfl", "did you mean 'sfl-v1' or 'sfl-v2'?"),
        ("models", "deit_tiny_patch16", "did you mean 'deit_tiny_patch16_224'?"),
        ("codecs", "nosuch", "codecs: none is named 'nosuch'; see all: splitfed list codecs"),
        ("reducer", "*", "reducer: cannot be listed, did you mean 'reducers'?"),
        ("nosuch", "*", "nosuch: cannot be listed; known: reducers, codecs, "),
    ],
)
def test_what_is_not_listed_is_told_with_what_comes_close(what: str, pattern: str, told: str) -> None:
    with pytest.raises(SplitfedError) as caught:
        entries(what, pattern)
    assert told in str(caught.value)


def test_without_a_word_all_that_can_be_listed_is_told() -> None:
    assert [one.name for one in sorts()] == list(SORTS)
    assert all(len(one.text.split()) > 2 for one in sorts())


def test_models_are_those_that_can_be_split() -> None:
    found = named("models", "*tiny*")
    assert {"deit_tiny_patch16_224", "vit_tiny_patch16_224"} <= set(found)
    # another class, no class token
    assert not {"deit_tiny_distilled_patch16_224", "vit_tiny_patch16_rope_reg1_gap_256"} & set(found)
    assert found["deit_tiny_patch16_224"] == Listed(
        "deit_tiny_patch16_224", "weights: fb_in1k", "224 px, patch 16, width 192, 12 blocks"
    )


def test_models_whose_attention_cannot_be_read_say_so() -> None:
    assert "no CLS attention" in named("models", "vit_base_patch16_xp_224")["vit_base_patch16_xp_224"].text
    assert "no CLS attention" not in named("models", "vit_base_patch16_224")["vit_base_patch16_224"].text


def test_a_pattern_narrows_and_what_is_not_there_is_said() -> None:
    assert set(named("codecs", "*float16")) == {"float16", "bfloat16"}
    with pytest.raises(SplitfedError, match=r"^codecs: none is named 'x\*'; see all: splitfed list codecs$"):
        entries("codecs", "x*")
    with pytest.raises(
        SplitfedError, match=r"^reducer: cannot be listed, did you mean 'reducers'\?; known: reducers, "
    ):
        entries("reducer")


@pytest.mark.parametrize("width", [40, 400])
def test_a_pipe_gets_one_whole_line_each(width: int) -> None:
    file = io.StringIO()
    show([Listed("a", "x=1", "What [b]it[/b] is."), Listed("longer", "", "Short.", "arXiv 1234.56789")],
         rich.console.Console(file=file, width=width))  # fmt: skip
    assert file.getvalue() == "a       What [b]it[/b] is.  x=1\nlonger  Short. (arXiv 1234.56789)\n"


def test_keys_are_explained_below_their_entry_where_it_is_asked_for() -> None:
    found = entries("reducers", "c3sl")
    (told,) = found[0].told
    for long in (False, True):
        file = io.StringIO()
        show(found, rich.console.Console(file=file), long=long)
        first, *others = file.getvalue().splitlines()
        assert first.startswith("c3sl  Bind `r` samples into one")
        assert others == [f"  r   {told[1]}"] * long
    assert told[1].startswith("Samples that become one.")


@pytest.mark.parametrize(("arguments", "lines"), [((), 1), (("--long",), 3), (("zstd",), 3)])
def test_the_command_explains_keys_with_a_pattern_or_long(
    arguments: tuple[str, ...], lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["list", "lossless", *arguments], standalone_mode=False)
    about = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("none")]
    starts = ("zstd ", "  level ", "  shuffle ")[:lines]
    assert len(about) == lines
    assert all(line.startswith(start) for line, start in zip(about, starts, strict=True))


def test_a_terminal_wraps_beside_the_names() -> None:
    file = io.StringIO()
    show(
        [Listed("name", "", "one two three four five six")],
        rich.console.Console(file=file, width=20, force_terminal=True),
    )
    first, *others = file.getvalue().splitlines()
    assert first.startswith("name  one two")
    assert others
    assert all(line.startswith("      ") for line in others)
