import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from splitfed.data.augment import Variants, draw_seeds, flip, paper, variants_of
from splitfed.data.batches import batches, count_batches
from splitfed.data.images import Images
from splitfed.data.settings import DataConfig
from splitfed.data.sources.base import InMemory
from splitfed.errors import DataError
from splitfed.seeds import Key

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make(count: int, size: int = 8) -> Images:
    """Images whose label is their row, so that order can be read from the labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images = Images(InMemory(pixels, torch.arange(count)), torch.arange(count), size)
    images.keep()
    return images


IMAGES = make(40)


def labels_of(found) -> list[list[int]]:
    return [batch.labels.tolist() for batch in found]


def same(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(one, other, strict=True)
    )


def global_state():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(1, 9))
def test_passes_hold_every_row_once_and_steps_are_the_first_batches_of_them(rows, size, epochs, steps):
    chosen = torch.arange(40)[-rows:]
    found = labels_of(batches(IMAGES, chosen, size, Key(0), epochs=epochs, **PLAIN))
    assert len(found) == count_batches(rows, size, None, epochs)
    each = len(found) // epochs
    for epoch in range(epochs):
        one_pass = found[epoch * each : (epoch + 1) * each]
        assert sorted(row for batch in one_pass for row in batch) == chosen.tolist()
        assert all(len(batch) == size for batch in one_pass[:-1])
    by_steps = labels_of(batches(IMAGES, chosen, size, Key(0), steps=steps, **PLAIN))
    assert len(by_steps) == steps == count_batches(rows, size, steps, None)
    shared = min(steps, len(found))
    assert by_steps[:shared] == found[:shared]


def test_each_pass_and_each_key_has_its_order():
    rows = torch.arange(40)
    first, second = labels_of(batches(IMAGES, rows, 40, Key(0), epochs=2, **PLAIN))
    assert first != second
    assert labels_of(batches(IMAGES, rows, 40, Key(0), epochs=1, **PLAIN)) == [first]
    assert labels_of(batches(IMAGES, rows, 40, Key(1), epochs=1, **PLAIN)) != [first]


def test_without_shuffling_rows_come_as_given():
    rows = torch.tensor([5, 3, 9, 9, 1])
    found = labels_of(batches(IMAGES, rows, 2, Key(0), epochs=1, shuffle=False, **PLAIN))
    assert found == [[5, 3], [9, 9], [1]]


def test_pixels_are_normalised():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    (batch,) = batches(IMAGES, torch.arange(40), 64, Key(0), epochs=1, shuffle=False, mean=mean, std=std)
    plain = IMAGES.pixels(torch.arange(40)).double() / 255
    expected = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert torch.allclose(batch.images.double(), expected, atol=1e-5)


@pytest.mark.parametrize("augment", ["none", "flip", "paper"])
def test_the_same_batches_for_any_number_of_workers_and_no_global_randomness(augment):
    def take(workers):
        return list(batches(IMAGES, torch.arange(40), 16, Key(7), augment=augment, workers=workers, steps=5, **PLAIN))

    before = global_state()
    found = take(0)
    assert global_state() == before
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = global_state()
    assert same(found, take(0))
    assert same(found, take(1))
    assert same(found, take(2))
    assert global_state() == before


@pytest.mark.parametrize("augment", ["flip", "paper"])
def test_augmentation_depends_on_the_place_in_the_pass_not_on_the_batch(augment):
    rows = torch.arange(40)

    def take(size):
        found = batches(IMAGES, rows, size, Key(3), augment=augment, epochs=1, **PLAIN)
        return torch.cat([batch.images for batch in found])

    assert torch.equal(take(7), take(40))


def test_flips_mirror_about_half_the_images_and_nothing_else():
    pixels = make(400).pixels(torch.arange(400))
    found = flip(pixels, draw_seeds(Key(0), 0, 400))
    mirrored = (found == pixels.flip(-1)).flatten(1).all(1)
    kept = (found == pixels).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(pixels, make(400).pixels(torch.arange(400)))  # what was given is left alone


def test_each_pass_is_augmented_anew():
    one, two = batches(IMAGES, torch.arange(40), 40, Key(0), augment="flip", epochs=2, shuffle=False, **PLAIN)
    assert not torch.equal(one.images, two.images)


def test_paper_augmentation_changes_colours_and_shapes_of_most_images():
    pixels = make(60, 16).pixels(torch.arange(60))
    found = paper(pixels, draw_seeds(Key(0), 0, 60))
    assert found.dtype == torch.uint8
    assert found.shape == pixels.shape
    changed = ((found != pixels) & (found != pixels.flip(-1))).flatten(1).any(1)
    assert int(changed.sum()) > 55
    assert not torch.equal(found, paper(pixels, draw_seeds(Key(1), 0, 60)))


def shown(augment, count, key, rows=40, **how) -> dict[tuple[int, int], bytes]:
    """Return the images that batches show, by place and variant."""
    variants = variants_of(DataConfig(path="digits", augment=augment, variants=count), Key(9))
    found = {}
    for batch in batches(IMAGES, torch.arange(40)[-rows:], 7, key, augment=augment, variants=variants, **how, **PLAIN):
        each = zip(batch.rows.tolist(), batch.variants.tolist(), strict=True)
        for name, image in zip(each, batch.images, strict=True):
            assert found.setdefault(name, image.numpy().tobytes()) == image.numpy().tobytes()
    return found


@pytest.mark.parametrize(("augment", "count"), [("none", 1), ("flip", 2), ("paper", 3)])
def test_a_variant_depends_on_sample_and_variant_alone(augment, count):
    one = {
        name: image
        for v in range(count)
        for name, image in shown(augment, count, Key(0), variant=torch.full((40,), v), epochs=1).items()
    }
    assert one.keys() == {(row, variant) for row in range(40) for variant in range(count)}
    drawn = shown(augment, count, Key(1), epochs=2)
    assert {variant for _, variant in drawn} == set(range(count))
    assert drawn.items() <= one.items()
    some = shown(augment, count, Key(2), epochs=1, rows=30)
    assert all(one[row + 10, variant] == image for (row, variant), image in some.items())
    plain = shown("none", 1, Key(0), epochs=1)
    assert all(one[row, 0] == plain[row, 0] for row in range(40))
    changed = {variant: sum(one[row, variant] != one[row, 0] for row in range(40)) for variant in range(1, count)}
    assert all(number > 35 for number in changed.values())
    if augment == "paper":
        assert sum(one[row, 1] != one[row, 2] for row in range(40)) > 35


def test_each_row_shows_the_variant_that_is_said():
    one, other = (
        list(batches(IMAGES, torch.arange(40), 7, Key(1), variants=FLIPS, variant=(torch.arange(40) + v) % 2,
                     only=torch.tensor([3, 9, 30]), epochs=2, **PLAIN))
        for v in (1, 2)
    )  # fmt: skip
    for plain, mirrored in zip(one, other, strict=True):
        assert sorted(plain.rows.tolist()) == [3, 9, 30]
        assert plain.rows.equal(mirrored.rows)
        assert plain.labels.equal(plain.rows)
        assert plain.images.flip(-1).equal(mirrored.images)
        assert plain.variants.equal((plain.rows + 1) % 2)
        assert mirrored.variants.equal(plain.rows % 2)


FLIPS = Variants("flip", 2, Key(0))


def test_passes_draw_variants_anew_whatever_the_number_of_workers():
    def take(workers):
        return list(batches(IMAGES, torch.arange(40), 16, Key(7), variants=FLIPS, workers=workers, epochs=2, **PLAIN))

    assert same(take(0), take(2))
    by_row = [dict(zip(torch.cat([b.rows for b in part]).tolist(), torch.cat([b.variants for b in part]).tolist(),
                       strict=True)) for part in (take(0)[:3], take(0)[3:])]  # fmt: skip
    assert 10 < sum(by_row[0][row] != by_row[1][row] for row in range(40)) < 30


@pytest.mark.parametrize(("augment", "count", "why"), [
    ("none", 2, "an image has no variant but itself"), ("flip", 3, "flip has two variants"), ("paper", 0, "greater"),
])  # fmt: skip
def test_variants_that_an_augmentation_lacks_are_refused(augment, count, why):
    with pytest.raises(ValidationError, match=why):
        DataConfig(path="digits", augment=augment, variants=count)


@given(st.integers(0, 50), st.integers(0, 20))
def test_seeds_do_not_depend_on_where_one_starts_to_draw(start, count):
    assert np.array_equal(draw_seeds(Key(4), start, count), draw_seeds(Key(4), 0, 80)[start : start + count])


class Broken(InMemory):
    """Fails for row 3."""

    def image(self, row):
        if row == 3:
            raise DataError("data.image_column: row 3 is broken")
        return super().image(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_an_error_of_one_line(workers):
    source = Broken(np.zeros((5, 8, 8, 3), dtype=np.uint8), torch.arange(5))
    images = Images(source, torch.arange(5), 8)
    with pytest.raises(DataError) as caught:
        list(batches(images, torch.arange(5), 2, Key(0), workers=workers, epochs=1, **PLAIN))
    assert str(caught.value) == "data.image_column: row 3 is broken"


def test_misuse_is_refused():
    for wrong in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(ValueError, match="either steps or epochs"):
            list(batches(IMAGES, torch.arange(4), 2, Key(0), **wrong, **PLAIN))
    with pytest.raises(ValueError, match="no rows"):
        list(batches(IMAGES, torch.arange(0), 2, Key(0), steps=1, **PLAIN))
    assert list(batches(IMAGES, torch.arange(0), 2, Key(0), epochs=1, **PLAIN)) == []
