"""Presets: what a name stands for, what wins over it, and that each of them works."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from helpers import small

from splitfed import estimate
from splitfed.cli.listing.kinds import entries
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import View
from splitfed.errors import ScenarioError
from splitfed.reports.sweep.plan import Sweep
from splitfed.scenario import Scenario
from splitfed.scenario.compression import Compression
from splitfed.scenario.overrides import named
from splitfed.scenario.presets import PRESETS, trespasses
from splitfed.seeds import Key
from splitfed.split.cut import Cut
from splitfed.testing import send

HEAD = """\
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 8, args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
data: {path: digits, limit: 64, test_limit: 16}
federation: {clients: 2, rounds: 4}
"""
SMALL = HEAD + "preset: small\n"
ADC = HEAD + "compression:\n  reducer: {kind: adc, ratio: 0.4}\n  smashed: {codec: bfloat16}\n"
RATE = HEAD + "training: {batch_size: 8, client: {optimiser: {kind: adam, lr: 0.1, beta1: 0.8}}}\n"

ROTATED = {"kind": "uniform", "bits": 2, "rotation": True, "scale_bits": 16}


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the presets values of the tests' own, since the real ones follow measurements."""
    common = {"cut_gradient": {"codec": ROTATED}, "front_weights": {"codec": {"kind": "uniform", "bits": 6}}}
    values = {
        "medium": {"compression": {"smashed": {"codec": "float16"}}},
        "small": {
            "compression": {
                "reducer": {"kind": "discard_tokens", "kept_tokens": 0.7},
                "smashed": {"codec": {"kind": "uniform", "bits": 4, "scale": "channel"}},
            },
            "training": {"client": {"optimiser": {"kind": "adam", "lr": 0.02}}, "evaluate_every": 3},
        },
        "tiny": {
            "compression": {
                "reducer": {"kind": "discard_tokens", "kept_tokens": 0.5},
                "smashed": {"codec": ROTATED},
            },
            "federation": {"local_epochs": 5},
        },
    }
    for name, settings in values.items():
        monkeypatch.setitem(PRESETS, name, settings | {"compression": common | settings["compression"]})


@contextmanager
def refused(*problems: str) -> Iterator[None]:
    with pytest.raises(ScenarioError) as caught:
        yield
    assert caught.value.problems == list(problems)


def scenario(text: str, *overrides: str, preset: str | None = None) -> Scenario:
    return Scenario.parse(text, "f.yaml", list(overrides), preset=preset)


def compression(text: str, *overrides: str, preset: str | None = None) -> Compression:
    return scenario(text, *overrides, preset=preset).compression


def stated(name: str, **changes: object) -> Compression:
    """Return what a preset stands for, through no code of presets: its settings as a user would write them."""
    settings = yaml.safe_load(yaml.safe_dump(PRESETS[name]))["compression"]
    return Compression.model_validate({**settings, **changes})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_its_settings(name: str) -> None:
    own = PRESETS[name] | {"federation": {"clients": 2, "rounds": 4} | PRESETS[name].get("federation", {})}
    written = HEAD.replace("federation: {clients: 2, rounds: 4}\n", "") + "".join(
        f"{key}: {json.dumps(value)}\n" for key, value in own.items()
    )
    found = scenario(HEAD + f"preset: {name}\n")
    assert found == scenario(written) == scenario(HEAD, preset=name)
    sections = yaml.safe_load(HEAD)
    assert found == Scenario.from_dict({**sections, "preset": name}) == Scenario(preset=name, **sections)
    assert found != scenario(HEAD)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_sets_what_an_experiment_is_about(name: str) -> None:
    assert not trespasses(PRESETS[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"cut": 2}}, {"data": {"validation": 0.1}}, {"seed": 1}, {"engine": {"kind": "inline"}},
        {"name": "x"}, {"preset": "small"}, {"federation": {"clients": 3}}, {"federation": {"rounds": 3}},
        {"federation": {"kind": "whole"}},
    ],
)  # fmt: skip
def test_such_a_preset_would_be_seen(settings: dict[str, object]) -> None:
    allowed = {"compression": {"reducer": {"kind": "none"}}, "federation": {"local_epochs": 2}}
    assert not trespasses(allowed)
    assert len(trespasses(allowed | settings)) == 1


@pytest.mark.usefixtures("fixed")
def test_keys_of_the_file_win_and_leave_the_rest() -> None:
    found = compression(HEAD + "compression: {front_weights: {codec: float16}}\npreset: small\n")
    assert found == stated("small", front_weights={"codec": "float16"})
    found = compression(
        HEAD + "preset: tiny\ncompression:\n  reducer: {kept_tokens: 0.6}\n  smashed: {codec: {bits: 6}}\n"
    )
    assert (found.reducer.kind, found.reducer.kept_tokens) == ("discard_tokens", 0.6)
    codec = found.smashed.codec
    assert (codec.kind, codec.bits, codec.rotation, codec.scale_bits) == ("uniform", 6, True, 16)
    assert found.cut_gradient == stated("tiny").cut_gradient
    found = compression(HEAD + "preset: medium\ncompression: {smashed: {lossless: none}}\n").smashed
    assert (found.codec.kind, found.lossless.kind) == ("float16", "none")
    training = scenario(RATE + "preset: small\n").training
    assert (training.batch_size, training.evaluate_every, training.client.optimiser.lr) == (8, 3, 0.1)


@pytest.mark.usefixtures("fixed")
def test_a_section_that_names_its_kind_stands_as_it_is_written() -> None:
    written = "{reducer: {kind: adc, ratio: 0.3}, smashed: {codec: {kind: uniform, bits: 8}}}"
    found = compression(HEAD + f"preset: tiny\ncompression: {written}\n")
    assert found.reducer == Compression(reducer={"kind": "adc", "ratio": 0.3}).reducer
    assert found.smashed.codec == Compression(smashed={"codec": {"kind": "uniform", "bits": 8}}).smashed.codec
    assert compression(HEAD + "preset: tiny\ncompression: {reducer: none}\n").reducer == Compression().reducer


@pytest.mark.usefixtures("fixed")
def test_set_changes_a_presets_values_like_written_ones() -> None:
    before = scenario(SMALL)
    assert compression(SMALL, "compression.reducer.kept_tokens=0.9").reducer.kept_tokens == 0.9
    found = compression(SMALL, "compression.smashed.codec.bits=3").smashed.codec
    assert (found.bits, found.scale) == (3, "channel")
    assert scenario(SMALL, "training.client.optimiser.lr=0.5").training.client.optimiser.lr == 0.5
    # another kind drops what belonged to the old one
    for text, preset in ((SMALL, None), (ADC, "small")):
        found = compression(
            text, "compression.reducer.kind=adc", "compression.reducer.ratio=0.5", preset=preset
        ).reducer
        assert (found.kind, found.ratio, found.kept_tokens) == ("adc", 0.5, None)
    assert compression(SMALL, "compression={}") == Compression()  # a section that is set whole is what it says
    assert scenario(SMALL) == before  # what a preset stands for has not changed with it


@pytest.mark.usefixtures("fixed")
def test_the_command_lines_preset_takes_the_files_place_in_all_keys_of_presets() -> None:
    tiny = scenario(HEAD, preset="tiny")
    more = SMALL + "compression: {front_weights: {codec: float16}, reducer: {kept_tokens: 0.9}}\n"
    epochs = HEAD.replace("rounds: 4", "rounds: 4, local_epochs: 9")
    for text in (HEAD, ADC, SMALL, more, epochs):
        assert scenario(text, preset="tiny") == tiny
    # keys of other presets, which this one leaves at their defaults; keys of none stay
    found = scenario(RATE + "compression: {targets: {codec: float16}, smashed: {lossless: none}}\n", preset="medium")
    assert found.training.client.optimiser == scenario(HEAD).training.client.optimiser
    assert found.training.batch_size == 8
    assert (found.compression.smashed.codec.kind, found.compression.smashed.lossless.kind) == ("float16", "none")
    assert found.compression.targets.codec.kind == "float16"


def test_memory_goes_with_the_preset_that_asked_for_it() -> None:
    for text in (HEAD + "preset: tiny\n", HEAD + "phases: [frozen]\nmemory: {disk: 1GB, passes: 3}\n"):
        found = scenario(text, preset="medium")
        assert (found.memory, found.phases) == (None, ())
    refined = scenario(HEAD + "preset: tiny\nmemory: {passes: 3}\n").memory
    assert refined is not None
    assert (refined.passes, refined.mix) == (3, PRESETS["tiny"]["memory"]["mix"])


@pytest.mark.usefixtures("fixed")
def test_overrides_refine_the_preset_that_is_named_beside_them() -> None:
    refined = stated("tiny", front_weights={"codec": "float16"})
    for text in (HEAD, ADC, SMALL):
        weights = "compression.front_weights.codec=float16"
        assert compression(text, weights, preset="tiny") == refined
        assert compression(text, *named("tiny"), weights) == compression(text, weights, *named("tiny")) == refined
        assert compression(text, *named("medium"), weights, *named("tiny")) == refined
    bits = compression(ADC, "compression.cut_gradient.codec.bits=8", preset="tiny").cut_gradient.codec
    assert (bits.bits, bits.rotation) == (8, True)


def test_no_preset_is_the_file_without_it() -> None:
    found = compression(HEAD + "preset: null\ncompression: {reducer: {kind: adc, ratio: 0.1}}\n")
    assert found.reducer.kind == "adc"
    assert scenario(HEAD + "preset: null\n") == scenario(HEAD)


def test_what_a_run_keeps_is_complete_and_names_no_preset() -> None:
    found = scenario(SMALL)
    stored = yaml.safe_load(found.to_yaml())
    assert "preset" not in stored
    assert stored["compression"]["reducer"].items() >= PRESETS["small"]["compression"]["reducer"].items()
    assert Scenario.parse(found.to_yaml()) == found
    assert found.with_([], preset="tiny").compression == stated("tiny")


def test_an_unknown_preset_is_one_line_where_it_is_written() -> None:
    known = "known: 'medium', 'small', 'tiny'"
    with refused(f"f.yaml:4: preset: unknown preset 'smal', {known}, did you mean 'small'?"):
        compression(HEAD + "preset: smal\ncompression: {smashed: {codec: {bits: 3}}}\n")
    with refused(f"--preset tinny: preset: unknown preset 'tinny', {known}, did you mean 'tiny'?"):
        compression(ADC, "compression.smashed.codec.bits=3", preset="tinny")
    for value in ("[small]", "{small: 1}", "3"):
        with pytest.raises(
            ScenarioError, match=r"f\.yaml:4: preset: unknown preset .*, known: 'medium', 'small', 'tiny'"
        ):
            compression(HEAD + f"preset: {value}\n")
    with refused("f.yaml:4: prset: unknown key, did you mean 'preset'?"):
        compression(SMALL.replace("preset", "prset"))


def test_a_preset_is_named_and_not_set() -> None:
    with refused("--set preset=tiny: preset: is not set but named: write --preset tiny"):
        scenario(SMALL, "preset=tiny")


def test_the_place_of_presets_before_is_one_line_with_the_new_one() -> None:
    moved = "compression.preset: is of the whole scenario now: write 'preset: small' at its top, or --preset small"
    with refused(f"f.yaml:4: {moved}"):
        scenario(HEAD + "compression: {preset: small}\n")
    with refused(f"f.yaml:5: {moved}"):
        scenario(HEAD + "compression:\n  preset: small\n  smashed: {codec: {bits: 3}}\n")
    with refused(f"--set compression.preset=small: {moved}"):
        scenario(ADC, "compression.preset=small", "compression.reducer.kept_tokens=0.3")
    with refused(f"--set compression={{preset: small}}: {moved}"):
        scenario(SMALL, "compression={preset: small}")
    with refused(f"scenario: {moved.replace('small', 'NAME')}"):
        Scenario.from_dict(yaml.safe_load(HEAD) | {"compression": {"preset": "smal"}})


@pytest.mark.usefixtures("fixed")
def test_mistakes_beside_a_preset_are_told_at_their_lines() -> None:
    with refused(
        "f.yaml:6: compression.reducer.ratio: unknown key for kind 'discard_tokens', it belongs to "
        "'adc', 'topk', 'random_topk', 'jscc'",
        "f.yaml:8: compression.smashed.codec.bits: must be 2, 3, 4, 6 or 8, not 5",
    ):
        compression(HEAD + "preset: tiny\ncompression:\n  reducer: {ratio: 0.1}\n  smashed:\n    codec: {bits: 5}\n")
    with refused("f.yaml:5: compression.smashed: must be a section, not null"):
        compression(SMALL + "compression: {smashed: null}\n")
    with refused("f.yaml:5: compression: must be a section, not null"):
        compression(SMALL + "compression: null\n")


@pytest.mark.usefixtures("fixed")
def test_what_a_preset_sets_and_does_not_fit_is_told_where_it_is_named() -> None:
    steps = ["federation.local_steps=2"]
    why = "federation.local_steps: local_epochs is set too: keep one of them and set the other to null"
    with refused(f"--set federation.local_steps=2: {why}"):
        scenario(HEAD + "preset: tiny\n", *steps)
    fl, why = ["federation.mode=fl"], "with fl nothing crosses a cut, weights are packed by front_weights: leave out"
    for text, preset, place in ((HEAD + "preset: tiny\n", None, "f.yaml:4"), (SMALL, "tiny", "--preset tiny")):
        with pytest.raises(ScenarioError) as caught:
            scenario(text, *fl, preset=preset)
        [problem] = caught.value.problems
        assert problem.startswith(f"{place}: compression: {why}")
        assert problem.endswith(" (preset 'tiny' sets it)")


def test_a_sweep_varies_the_preset(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(ADC)
    (tmp_path / "sweep.yaml").write_text(
        "scenario: base.yaml\nset: {compression.front_weights.codec: float16, preset: small}\n"
        "grid: {preset: [medium, tiny]}\npoints: {set: {}, none: {preset: null}}\n"
    )
    points = {point.label: point.scenario.compression for point in Sweep.load(tmp_path / "sweep.yaml").points}
    assert list(points) == ["presetmedium", "presettiny", "set", "none"]
    for label, name in (("presetmedium", "medium"), ("presettiny", "tiny"), ("set", "small")):
        weights = PRESETS[name]["compression"]["front_weights"] | {"codec": "float16"}
        assert points[label] == stated(name, front_weights=weights)
    assert points["none"] == Compression(front_weights={"codec": "float16"})
    (tmp_path / "sweep.yaml").write_text("scenario: base.yaml\npoints: {a: {}, b: {preset: small, model.cut: 2}}\n")
    for point in Sweep.load(tmp_path / "sweep.yaml", named("tiny")).points:
        assert point.scenario.compression == stated("tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_crosses_under_every_preset(name: str) -> None:
    config, geometry, key = stated(name), Geometry(8, 17, 96, 1, 10), Key(3)
    cut = Cut(config, geometry, torch.device("cpu"))
    generator = key.generator()
    activations = torch.randn(8, 17, 96, generator=generator)
    attention = torch.rand(8, 17, generator=generator)
    plan = cut.reducer.plan(View(activations, 1, lambda: attention), key)
    smashed = plan.reduce(activations)
    _, batch = send(cut, plan, activations, torch.arange(8))
    assert torch.equal(batch.targets, plan.targets(torch.arange(8), 10))
    assert (batch.smashed - smashed).norm() < 0.5 * smashed.norm()
    reply = cut.pack_gradient(batch.frame, torch.ones_like(smashed), 1.0, key)
    assert cut.unpack_gradient(reply.buffer, smashed).tensors["cut_gradient"].shape == smashed.shape


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("mode", ["sl", "sfl-v1", "sfl-v2", "psl"])
def test_every_mode_with_a_cut_takes_every_preset(mode: str, name: str) -> None:
    assert compression(HEAD, f"federation.mode={mode}", preset=name) == stated(name)
    private = [f"federation.mode={mode}", "federation.labels=private"]
    if mode != "psl" and name == "medium":
        assert compression(HEAD, *private, preset=name) == stated(name)
    elif mode != "psl":
        with pytest.raises(ScenarioError, match=rf"--preset {name}: (phases|memory): .*labels: private"):
            compression(HEAD, *private, preset=name)


def test_presets_stand_in_the_order_of_their_bytes() -> None:
    cut, total = [], []
    for name in ("medium", "small", "tiny"):
        found = estimate(small("federation.rounds=9").with_([], preset=name))
        cut.append(found.round.cut.sent)
        total.append(found.total_sent)
    assert list(PRESETS) == ["medium", "small", "tiny"]
    assert cut == sorted(cut, reverse=True)
    assert total == sorted(total, reverse=True)


def test_presets_are_listed_with_their_settings() -> None:
    found = {entry.name: entry for entry in entries("presets")}
    assert list(found) == list(PRESETS)
    for name, entry in found.items():
        assert yaml.safe_load(entry.text) == PRESETS[name]
