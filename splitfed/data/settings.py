"""The settings of a scenario's data, and of what clients hold out for evaluation. Nothing heavy is imported here, so
that a scenario is read without torch."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from splitfed.config import Bytes, Config, as_tuple
from splitfed.data.partitions.union import Iid, PartitionConfig
from splitfed.errors import DataError

Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Rows = Annotated[tuple[NonNegativeInt, ...], BeforeValidator(as_tuple)]
Augment = Literal["none", "flip", "paper"]


_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def looks_like_name(path: str) -> bool:
    """Tell whether something is written as names of the Hub are."""
    return bool(_ON_THE_HUB.fullmatch(path))


class Expected(Config):
    """What a data set is known to hold, before any limit; an estimate works from it where nothing is loaded."""

    classes: PositiveInt
    """Classes of the data set."""
    train: PositiveInt
    """Images of the training split."""
    test: PositiveInt
    """Images of the test split."""


class Fingerprint(Config):
    """What a data set is, wherever it lies: written into the scenario of a run when it starts, which goes on with these
    data alone, as do its clients."""

    train: NonNegativeInt
    """Images of the training split, before any limit."""
    test: NonNegativeInt
    """Images of the test split, before any limit."""
    classes: Names
    """Names of the classes."""
    labels: str
    """Hash of all labels, in order."""
    images: str
    """Hash of a sample of the images, as they are stored."""
    bad_train: Rows = ()
    """Rows of the training split that `on_bad: skip` leaves out."""
    bad_test: Rows = ()
    """Rows of the test split that `on_bad: skip` leaves out."""

    @property
    def bad(self) -> int:
        """How many images are left out."""
        return len(self.bad_train) + len(self.bad_test)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images a scenario uses of each kind."""

    train: int
    validation: int
    test: int


class DataConfig(Config):
    """The data set and its use.

    A folder of one for each class has the columns `image` and `label`. Labels are integers, with or without names, or
    strings, which are numbered in sorted order. What is held out and what is left out is drawn from the seed, and keeps
    the shares of the classes.
    """

    missing: ClassVar = {"path": "name a folder, a table or a data set of the Hub with --set data.path=PATH"}

    path: str = Field(min_length=1)
    """A folder or a table on this machine, taken as it is written, or else a name on the Hugging Face Hub; or `digits`,
    the 1,797 real 8x8 images that scikit-learn brings, a fifth of them for testing, which need none of the keys up to
    `test_split`."""
    name: str | None = None
    """Configuration of the data set on the Hub; null is its default."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str = "label"
    """Column of the labels: integers, with or without names, or strings. An empty one and a negative one are none."""
    train_split: str = "train"
    """Split to train on; it may be a slice, such as `train[:80%]`."""
    test_split: str | Annotated[float, Field(gt=0, lt=1)] = "test"
    """Split to test on, which may be a slice; where there is none, a share of the training split, such as 0.2: drawn by
    class, and the same whatever the seed."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the training images in use that is held out for validation, in (0, 1)."""
    limit: PositiveInt | None = None
    """Images that are trained on at most, those for validation not counted: with `limit: 5000` and `validation: 0.1`
    another 556 are held out. Null is all."""
    test_limit: PositiveInt | None = None
    """Test images that are used at most; null is all."""
    workers: NonNegativeInt = 0
    """Loader processes of each client that trains; with 0 it loads its images itself."""
    augment: Augment = "none"
    """Random changes to training images: `flip` mirrors them, `paper` does as for DeiT in the ADC paper (arXiv
    2509.15058, section IV)."""
    variants: PositiveInt | None = None
    """Fixed variants of each image: variant 0 is the image as it is; with `flip` variant 1 is its mirror image, with
    `paper` each of the others is drawn once, from seed, image and variant. In each pass over the data an image shows
    one of them. Null changes images anew in each pass."""
    white: float | None = Field(None, gt=0)
    """The value that is white in grey images of more than 8 bits, such as 4095 for 12 bits in files of 16, or 1.0 in
    floating-point ones; 0 is black. Null is 65535, and images that this would leave all but black are refused."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What becomes of images that cannot be decoded or have no label: with `refuse` a run ends before its first round,
    and all of them are named; with `skip` it goes without them, and tells how many they are."""
    partition: PartitionConfig = Iid()
    """How the training images are dealt to the clients."""
    cache: Bytes | None = 1 << 30
    """Memory that the resized images may take, all in all: `1 GiB`, or a number of bytes. With null they are decoded
    again each time."""
    expect: Expected | None = None
    """What the data set must hold, or it is refused; null takes whatever it holds."""
    fingerprint: Fingerprint | None = None
    """What a run's data set is: splitfed writes it into the run's own scenario, and refuses to go on with another."""

    @field_validator("variants")
    @classmethod
    def _are_of_the_augmentation(cls, variants: int | None, info: ValidationInfo) -> int | None:
        augment = info.data.get("augment")
        if augment == "none" and variants not in (None, 1):
            raise ValueError("with augment: none an image has no variant but itself: set 1 or null, or another augment")
        if augment == "flip" and variants not in (None, 1, 2):
            raise ValueError("flip has two variants, the image and its mirror image: set 2 at most, or augment: paper")
        return variants

    def counts(self, train: int, test: int) -> Counts:
        """Return what is used of a data set with so many images; `DataError` where none would be left to train on."""
        validation = max(1, round(self.validation * train))
        used = train - validation
        if used < 1 or test < 1:
            raise DataError(
                f"data.validation: {self.validation:g} of {train} training images, with {test} test images, leaves "
                "nothing to train or to test on; use a larger data set or a smaller share"
            )
        if self.limit is not None and self.limit < used:
            used = self.limit
            validation = min(validation, max(1, round(used * self.validation / (1 - self.validation))))
        return Counts(used, validation, test if self.test_limit is None else min(test, self.test_limit))


class Evaluation(Config):
    """Clients evaluate the model on images of their own, beside the server, which looks at the validation split.

    Those who are asked get the round's new front, run it on what they hold out, and send activations and labels; the
    back answers with loss and number right. No reducer takes part, but for layers of its own, which belong to the
    model; codecs are those of `compression.smashed` and `targets`. These bytes have a role of their own, `evaluation`,
    raw as float32 activations and 8 bytes a label. They cross, so cut bytes and budgets have them in it. With private
    labels the back answers with activations, packed as `tail_smashed`, and tail and loss are the client's; with `fl`
    nothing crosses but weights.
    """

    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of each client's images that it never trains on, drawn by seed and by class: one at least, where a client
    has two or more. Who has a single image trains on it and is not asked. With 0 nobody holds anything out, and the
    other keys say nothing."""
    every: PositiveInt = 1
    """Rounds from one evaluation to the next; after the last round there always is one."""
    cohort: PositiveInt | None = None
    """Clients that are asked, drawn among those who are there and hold something out; null is all of them."""

    def due(self, round: int, last: bool) -> bool:
        """Tell whether clients are asked after this round; `last`: no other comes after it."""
        return self.held_out > 0 and (last or round % self.every == 0)

    def most_asked(self, clients: int) -> int:
        """Return how many of so many clients are asked at once."""
        return min(self.cohort or clients, clients) if self.held_out else 0
