"""Presets: what a name stands for, what wins over it, and that each of them works."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import yaml
from helpers import small

from splitfed import estimate
from splitfed.cli.listing.kinds import entries
from splitfed.compression.expect import Geometry
from splitfed.compression.presets import PRESETS
from splitfed.compression.reducers.base import View
from splitfed.errors import ScenarioError
from splitfed.reports.sweep.plan import Sweep
from splitfed.scenario import Scenario
from splitfed.scenario.compression import Compression
from splitfed.seeds import Key
from splitfed.split.cut import Cut
from splitfed.testing import send

HEAD = """\
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 8, args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
data: {path: digits, limit: 64, test_limit: 16}
federation: {clients: 2, rounds: 1}
"""
SMALL = HEAD + "compression: {preset: small}\n"
ADC = HEAD + "compression:\n  reducer: {kind: adc, ratio: 0.4}\n  smashed: {codec: bfloat16}\n"


ROTATED = {"kind": "uniform", "bits": 2, "rotation": True, "scale_bits": 16}


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the presets values of the tests' own, since the real ones follow measurements."""
    common = {"cut_gradient": {"codec": ROTATED}, "front_weights": {"codec": {"kind": "uniform", "bits": 6}}}
    values = {
        "medium": {"smashed": {"codec": "float16"}},
        "small": {
            "reducer": {"kind": "discard_tokens", "kept_tokens": 0.7},
            "smashed": {"codec": {"kind": "uniform", "bits": 4, "scale": "channel"}},
        },
        "tiny": {"reducer": {"kind": "discard_tokens", "kept_tokens": 0.5}, "smashed": {"codec": ROTATED}},
    }
    for name, settings in values.items():
        monkeypatch.setitem(PRESETS, name, common | settings)


@contextmanager
def refused(*problems: str) -> Iterator[None]:
    with pytest.raises(ScenarioError) as caught:
        yield
    assert caught.value.problems == list(problems)


def compression(text: str, *overrides: str) -> Compression:
    return Scenario.parse(text, "f.yaml", list(overrides)).compression


def stated(name: str, **changes: object) -> Compression:
    """Return what a preset stands for, through no code of presets: its settings as a user would write them."""
    settings = yaml.safe_load(yaml.safe_dump(PRESETS[name]))
    return Compression.model_validate({**settings, **changes})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_its_settings(name: str) -> None:
    assert compression(HEAD + f"compression: {{preset: {name}}}\n") == stated(name) == Compression(preset=name)
    assert stated(name) != Compression()


@pytest.mark.usefixtures("fixed")
def test_keys_beside_a_preset_win_and_leave_the_rest() -> None:
    found = compression(HEAD + "compression: {front_weights: {codec: float16}, preset: small}\n")
    assert found == stated("small", front_weights={"codec": "float16"})
    found = compression(
        HEAD + "compression:\n  preset: tiny\n  reducer: {kept_tokens: 0.6}\n  smashed: {codec: {bits: 6}}\n"
    )
    assert (found.reducer.kind, found.reducer.kept_tokens) == ("discard_tokens", 0.6)
    codec = found.smashed.codec
    assert (codec.kind, codec.bits, codec.rotation, codec.scale_bits) == ("uniform", 6, True, 16)
    assert found.cut_gradient == stated("tiny").cut_gradient
    found = compression(HEAD + "compression: {preset: medium, smashed: {lossless: none}}\n").smashed
    assert (found.codec.kind, found.lossless.kind) == ("float16", "none")


@pytest.mark.usefixtures("fixed")
def test_a_section_that_names_its_kind_stands_as_it_is_written() -> None:
    written = "{preset: tiny, reducer: {kind: adc, ratio: 0.3}, smashed: {codec: {kind: uniform, bits: 8}}}"
    found = compression(HEAD + f"compression: {written}\n")
    assert found.reducer == Compression(reducer={"kind": "adc", "ratio": 0.3}).reducer
    assert found.smashed.codec == Compression(smashed={"codec": {"kind": "uniform", "bits": 8}}).smashed.codec
    assert compression(HEAD + "compression: {preset: tiny, reducer: none}\n").reducer == Compression().reducer


@pytest.mark.usefixtures("fixed")
def test_set_changes_a_presets_values_like_written_ones() -> None:
    before = compression(SMALL)
    assert compression(SMALL, "compression.reducer.kept_tokens=0.9").reducer.kept_tokens == 0.9
    found = compression(SMALL, "compression.smashed.codec.bits=3").smashed.codec
    assert (found.bits, found.scale) == (3, "channel")
    # another kind drops what belonged to the old one
    found = compression(SMALL, "compression.reducer.kind=adc", "compression.reducer.ratio=0.5").reducer
    assert (found.kind, found.ratio, found.kept_tokens) == ("adc", 0.5, None)
    assert compression(SMALL) == before  # what a preset stands for has not changed with it


def test_set_preset_replaces_the_files_section() -> None:
    for text in (HEAD, ADC, SMALL, SMALL.replace("small", "small, front_weights: {codec: float16}")):
        assert compression(text, "compression.preset=tiny") == stated("tiny")
        assert compression(text, "compression={preset: tiny}") == stated("tiny")
        assert compression(text, "compression.preset=medium", "compression.preset=tiny") == stated("tiny")


@pytest.mark.usefixtures("fixed")
def test_other_overrides_refine_a_preset_before_and_after_it() -> None:
    refined = stated("tiny", front_weights={"codec": "float16"})
    for text in (HEAD, ADC, SMALL):
        preset, weights = "compression.preset=tiny", "compression.front_weights.codec=float16"
        assert compression(text, preset, weights) == compression(text, weights, preset) == refined
        assert compression(text, "compression.preset=medium", weights, preset) == refined
        adc = ["compression.reducer.kind=adc", "compression.reducer.ratio=0.3"]
        for overrides in ([preset, *adc], [*adc, preset], [*reversed(adc), preset]):
            assert compression(text, *overrides) == stated("tiny", reducer={"kind": "adc", "ratio": 0.3})
    bits = compression(ADC, "compression.cut_gradient.codec.bits=8", "compression.preset=tiny").cut_gradient.codec
    assert (bits.bits, bits.rotation) == (8, True)


def test_no_preset_is_the_section_without_it() -> None:
    assert compression(HEAD + "compression: {preset: null, reducer: {kind: adc, ratio: 0.1}}\n").reducer.kind == "adc"
    assert compression(SMALL, "compression.preset=null") == Compression()


def test_what_a_run_keeps_is_complete_and_names_no_preset() -> None:
    scenario = Scenario.parse(SMALL)
    stored = yaml.safe_load(scenario.to_yaml())["compression"]
    assert "preset" not in stored
    assert stored["reducer"].items() >= PRESETS["small"]["reducer"].items()
    assert Scenario.parse(scenario.to_yaml()) == scenario


def test_an_unknown_preset_is_one_line_where_it_is_written() -> None:
    known = "known: 'medium', 'small', 'tiny'"
    with refused(f"f.yaml:4: compression.preset: unknown preset 'smal', {known}, did you mean 'small'?"):
        compression(SMALL.replace("small", "smal, smashed: {codec: {bits: 3}}"))
    with refused(f"--set compression.preset=tinny: compression.preset: unknown preset 'tinny', {known}, "
                 "did you mean 'tiny'?"):  # fmt: skip
        compression(ADC, "compression.preset=tinny")
    with refused(f"f.yaml:4: compression.preset: unknown preset a list, {known}"):
        compression(SMALL.replace("small", "[small]"))
    with refused("f.yaml:4: compression.prset: unknown key, did you mean 'preset'?"):
        compression(SMALL.replace("preset", "prset"))


@pytest.mark.usefixtures("fixed")
def test_mistakes_beside_a_preset_are_told_at_their_lines() -> None:
    with refused(
        "f.yaml:6: compression.reducer.ratio: unknown key for kind 'discard_tokens', it belongs to "
        "'adc', 'topk', 'random_topk'",
        "f.yaml:8: compression.smashed.codec.bits: must be 2, 3, 4, 6 or 8, not 5",
    ):
        compression(HEAD + "compression:\n  preset: tiny\n  reducer: {ratio: 0.1}\n  smashed:\n    codec: {bits: 5}\n")
    with refused("f.yaml:4: compression.smashed: must be a section, not null"):
        compression(SMALL.replace("small", "small, smashed: null"))


def test_a_sweep_varies_the_preset(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text(ADC)
    (tmp_path / "sweep.yaml").write_text(
        "scenario: base.yaml\nset: {compression.front_weights.codec: float16}\n"
        "grid: {compression.preset: [medium, small, tiny]}\n"
    )
    points = Sweep.load(tmp_path / "sweep.yaml").points
    assert [point.label for point in points] == ["presetmedium", "presetsmall", "presettiny"]
    for point, name in zip(points, PRESETS, strict=True):
        assert point.scenario.compression == stated(name, front_weights={"codec": "float16"})


@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_crosses_under_every_preset(name: str) -> None:
    config, geometry, key = Compression(preset=name), Geometry(8, 17, 96, 1, 10), Key(3)
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


def test_presets_stand_in_the_order_of_their_bytes() -> None:
    cut, total = [], []
    for name in ("medium", "small", "tiny"):
        found = estimate(small("data.expect={classes: 10, train: 96, test: 50}", f"compression.preset={name}")).round
        cut.append(found.cut.sent)
        total.append(found.total.sent)
    assert list(PRESETS) == ["medium", "small", "tiny"]
    assert cut == sorted(cut, reverse=True)
    assert total == sorted(total, reverse=True)


def test_presets_are_listed_with_their_settings() -> None:
    found = {entry.name: entry for entry in entries("presets")}
    assert list(found) == list(PRESETS)
    for name, entry in found.items():
        assert yaml.safe_load(entry.text) == PRESETS[name]
