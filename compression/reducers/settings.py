"""The settings of all reducers, as a scenario names them. Nothing heavy is imported here: `build` imports what it
builds, so that a scenario is read without torch."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import CutModel, Reducer, ReducerSettings
from splitfed.config import as_tuple
from splitfed.errors import ModelError

if TYPE_CHECKING:
    from splitfed.compression.reducers.trained.layers import Alignment, Halves

Share = Annotated[float, Field(gt=0, le=1)]
Pooling = Literal["attention", "cls", "average"]


class NoneConfig(ReducerSettings):
    """All samples and all tokens travel."""

    kind: Literal["none"] = "none"
    single: ClassVar[bool] = True

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.none import NoReduction

        return NoReduction()


class AdcConfig(ReducerSettings):
    """Merge samples that are looked at alike, then discard the tokens that are hardly looked at.

    ADC, arXiv 2509.15058, section 3. The kept shares are given by any two of `ratio`, `kept_samples` and `kept_tokens`,
    or by `ratio` alone.
    """

    kind: Literal["adc"] = "adc"
    ratio: Share | None = None
    """Share of the batch's tokens that is kept, in (0, 1]: `kept_samples` times `kept_tokens`. Alone it is split
    evenly, as the paper found best: both shares are its square root. Null where the other two say it."""
    kept_samples: Share | None = None
    """Share of the batch's samples that is left after merging, in (0, 1]; null where it follows from the others."""
    kept_tokens: Share | None = None
    """Share of a merged sample's tokens that is kept, in (0, 1], prefix tokens counted; null where it follows from the
    others."""
    iterations: int = Field(50, ge=1)
    """Steps of k-means at most; it ends where no sample moves."""
    pooling: Pooling = "attention"
    """What samples are compared by: the attention of the class token, that token itself (`cls`), or the average of all
    tokens. Tokens are chosen by attention in any case."""
    fuse: bool = False
    """Whether the tokens that are discarded travel as one token more, their mean weighted by attention."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "AdcConfig":
        self.shares()
        return self

    def shares(self) -> tuple[float, float]:
        """Return the kept shares of samples and of tokens. Raises ValueError where they are not determined."""
        ratio, samples, tokens = self.ratio, self.kept_samples, self.kept_tokens
        if ratio is None:
            if samples is None or tokens is None:
                raise ValueError("give ratio, or both kept_samples and kept_tokens")
            return samples, tokens
        if samples is None and tokens is None:
            return math.sqrt(ratio), math.sqrt(ratio)
        if samples is not None and tokens is not None:
            raise ValueError("ratio is kept_samples * kept_tokens: give two of the three, not all")
        other = ratio / (tokens if samples is None else samples)  # type: ignore[operator]
        if other > 1:
            given = "kept_tokens" if samples is None else "kept_samples"
            raise ValueError(f"{given} is below ratio, which would need a share of {other:.3g} of the others")
        return (other, tokens) if samples is None else (samples, other)  # type: ignore[return-value]

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.adc import Adc

        return Adc(*self.shares(), self.iterations, self.pooling, self.fuse)


class MergeSamplesConfig(ReducerSettings):
    """Merge a batch down to the share `kept_samples` of its samples, the first half of ADC (arXiv 2509.15058)."""

    kind: Literal["merge_samples"] = "merge_samples"
    kept_samples: Share
    """Share of the batch's samples that is left after merging, in (0, 1]."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.samples.merge_samples import MergeSamples

        return MergeSamples(self.kept_samples)


class DiscardTokensConfig(ReducerSettings):
    """Keep the share `kept_tokens` of each sample's tokens, the second half of ADC (arXiv 2509.15058)."""

    kind: Literal["discard_tokens"] = "discard_tokens"
    single: ClassVar[bool] = True
    kept_tokens: Share
    """Share of each sample's tokens that is kept, in (0, 1]: the prefix tokens, which are counted, and those that the
    class token attends to most."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.tokens.discard_tokens import DiscardTokens

        return DiscardTokens(self.kept_tokens)


class SemanticTokensConfig(ReducerSettings):
    """Keep the tokens that gates in the front, which learn with the model, leave open: more of one sample and fewer of
    another, and of all as many as a budget says. One model serves every budget (arXiv 2405.02330)."""

    kind: Literal["semantic_tokens"] = "semantic_tokens"
    ragged: ClassVar[bool] = True
    budget: Share = 0.5
    """Share of the patch tokens that is kept, in (0, 1], wherever the model is evaluated or its front stays as it is,
    and in training where `drawn` is null. Prefix tokens always travel, and one patch of each sample."""
    drawn: Annotated[tuple[Share, Share], BeforeValidator(as_tuple)] | None = (0.05, 1.0)
    """From which budget to which each mini-batch of training draws its own, evenly: of these the model learns. Null
    trains it at `budget` alone."""
    gates: int = Field(1, ge=1)
    """After how many of the front's blocks, the last ones, tokens are closed; each closes the same share of what the
    one before it has left."""

    def serves(self, trained: ReducerSettings) -> bool:
        """Tell whether there are as many gates; one model serves every budget."""
        return isinstance(trained, SemanticTokensConfig) and self.gates == trained.gates

    @model_validator(mode="after")
    def _from_less_to_more(self) -> "SemanticTokensConfig":
        if self.drawn is not None and self.drawn[0] > self.drawn[1]:
            raise ValueError(f"drawn: {list(self.drawn)} goes from more to less: turn it round")
        return self

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.tokens.semantic_tokens import SemanticTokens

        return SemanticTokens(self.budget, self.drawn, self.gates)

    def misfit(self, model: CutModel, geometry: Geometry) -> str | None:
        """Tell where the front has fewer blocks than gates."""
        if self.gates <= geometry.blocks:
            return None
        blocks = "1 block" if geometry.blocks == 1 else f"{geometry.blocks} blocks"
        return f"gates: {self.gates} is more than the {blocks} before model.cut: lower it, or raise that"


class TopKConfig(ReducerSettings):
    """Keep the share `ratio` of each sample's values, those of largest magnitude (Zheng et al., 2023, arXiv
    2305.18469)."""

    kind: Literal["topk"] = "topk"
    single: ClassVar[bool] = True
    ratio: Share
    """Share of each sample's values that is kept, in (0, 1]: k is its floor, and at least 1."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.values.topk import TopK

        return TopK(self.ratio)


class RandomTopKConfig(ReducerSettings):
    """Keep the share `ratio` of each sample's values, drawn, and mostly those of largest magnitude (Zheng et al., 2023,
    arXiv 2305.18469)."""

    kind: Literal["random_topk"] = "random_topk"
    single: ClassVar[bool] = True
    ratio: Share
    """Share of each sample's values that is kept, in (0, 1]: k is its floor, and at least 1."""
    alpha: float = Field(0.1, ge=0, lt=1)
    """Chance of a draw to take a value beyond the top k, in [0, 1); with 0 it is top-k."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.values.topk import RandomTopK

        return RandomTopK(self.ratio, self.alpha)


class C3slConfig(ReducerSettings):
    """Bind `r` samples into one by circular convolution with random keys (C3-SL, arXiv 2207.12397)."""

    kind: Literal["c3sl"] = "c3sl"
    r: int = Field(ge=1)
    """Samples that become one. It divides the batch size, and only a last batch may leave a smaller group."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.samples.c3sl import C3sl

        return C3sl(self.r)

    def problem(self, batch_size: int) -> str | None:
        """Tell which `r` would divide the batch size."""
        if batch_size % self.r == 0:
            return None
        fit = [r for r in range(1, batch_size + 1) if batch_size % r == 0]
        below, above = max(r for r in fit if r < self.r), [r for r in fit if r > self.r]
        near = f"{below} or {above[0]}" if above else f"{below}"
        return f"r: {self.r} does not divide training.batch_size: {batch_size}; r could be {near}"


def _narrower(width: int, model: CutModel, geometry: Geometry) -> str | None:
    """Tell where so many numbers a token would save nothing."""
    if width < geometry.width:
        return None
    return (
        f"width: {width} is not below the {geometry.width} features of {model.name}, so nothing would be saved: lower "
        "it, or use the reducer none"
    )


class BottleneckConfig(ReducerSettings):
    """Send `width` numbers a token through layers that are trained with the model (BottleNet++, arXiv 1910.14315)."""

    kind: Literal["bottleneck"] = "bottleneck"
    single: ClassVar[bool] = True
    layered: ClassVar[bool] = True
    width: int = Field(ge=1)
    """Numbers that a token is sent as; fewer than the model's features."""
    hidden: int | None = Field(None, ge=1)
    """Width between the two layers of each side; null is halfway between the model's and `width`."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.trained.bottleneck import Bottleneck

        return Bottleneck(self.width, self.hidden)

    def misfit(self, model: CutModel, geometry: Geometry) -> str | None:
        """Tell where nothing would be saved."""
        return _narrower(self.width, model, geometry)


class AeConfig(ReducerSettings):
    """Send `width` numbers a token through an autoencoder that was fitted before, and is frozen in training ("AE-PSL",
    2026)."""

    kind: Literal["ae"] = "ae"
    single: ClassVar[bool] = True
    layered: ClassVar[bool] = True
    width: int = Field(ge=1)
    """Numbers that a token is sent as, prefix tokens apart; fewer than the model's features."""
    weights: str | None = None
    """File that `splitfed align` wrote for this model, cut and width. A run needs one; null is for `splitfed align`,
    which makes it."""
    warm_up_epochs: int = Field(1, ge=0)
    """Passes over its images in which a client fits the encoder to them before its first round; with 0 all use it as it
    is."""
    lr: PositiveFloat = 1e-3
    """Learning rate of Adam in the warm-up."""

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.trained.autoencoder import Ae

        return Ae(self.width)

    def misfit(self, model: CutModel, geometry: Geometry) -> str | None:
        """Tell where nothing would be saved, and which file of weights is missing or another model's."""
        if problem := _narrower(self.width, model, geometry):
            return problem
        from splitfed.compression.reducers.trained.autoencoder import Kept, read

        make = "'splitfed align SCENARIO --public IMAGES --out FILE.safetensors' makes one"
        if self.weights is None:
            return f"weights: is missing: it names the file of an autoencoder; {make}"
        try:
            found, _ = read(self.weights)
        except ModelError as error:
            return f"weights: {error}; {make}"
        wanted = Kept.of(model, geometry, self.width)
        return None if found == wanted else f"weights: {self.weights} is for {found}, not for {wanted}; {make}"

    def load(self, halves: "Halves") -> None:
        """Take over the weights of the file. Raises ModelError where it has others than it says."""
        from splitfed.compression.reducers.trained.autoencoder import read

        assert self.weights is not None
        halves.load(read(self.weights)[1])

    def alignment(self) -> "Alignment":
        """Return how clients fit the autoencoder to their images."""
        from splitfed.compression.reducers.trained.layers import Alignment

        return Alignment(self.warm_up_epochs, self.lr)


Decibels = Annotated[float, Field(ge=-40, le=60)]


class JsccConfig(ReducerSettings):
    """Send tokens as complex symbols through a noisy channel, by layers that are trained through it: one model for all
    ratios and noise (the JSCC of arXiv 2505.17604).

    The channel is simulated at the client, in a deployment too: frames hold what a receiver would have.
    """

    kind: Literal["jscc"] = "jscc"
    single: ClassVar[bool] = True
    layered: ClassVar[bool] = True
    noisy: ClassVar[bool] = True
    ratio: Share = 0.25
    """Complex symbols that a token is sent as, over the model's features: the floor of that, and at least one. It holds
    wherever the model is evaluated or answers, and in training where `drawn_ratio` is null."""
    drawn_ratio: Annotated[tuple[Share, Share], BeforeValidator(as_tuple)] | None = None
    """From which ratio to which each mini-batch of training draws its own, evenly; `ratio` is one of them. The model
    then serves them all: at a smaller one the last symbols are left out. Null trains it at `ratio` alone."""
    snr: Decibels | None = None
    """Signal over noise in decibels, of answers after training, and in training where `drawn_snr` is null. Null is a
    channel without noise. Accuracies of a run are those without noise; `splitfed tradeoff --snr` tells others."""
    drawn_snr: Annotated[tuple[Decibels, Decibels], BeforeValidator(as_tuple)] | None = (-20.0, 20.0)
    """From how many decibels to how many each sample of training draws its own, evenly. Null trains at `snr` alone."""
    channel: Literal["awgn", "rayleigh"] = "awgn"
    """White Gaussian noise alone, or Rayleigh fading too, of one gain for each image, which the receiver knows."""

    @model_validator(mode="after")
    def _from_less_to_more(self) -> "JsccConfig":
        for key in ("drawn_ratio", "drawn_snr"):
            drawn = getattr(self, key)
            if drawn is not None and drawn[0] > drawn[1]:
                raise ValueError(f"{key}: {list(drawn)} goes from more to less: turn it round")
        if self.drawn_ratio is not None and not self.drawn_ratio[0] <= self.ratio <= self.drawn_ratio[1]:
            raise ValueError(f"ratio: {self.ratio} is none of drawn_ratio: {list(self.drawn_ratio)}: set one of these")
        return self

    def build(self) -> Reducer:
        """Return the reducer."""
        from splitfed.compression.reducers.trained.jscc import Jscc

        return Jscc(self.ratio, self.drawn_ratio, self.snr, self.drawn_snr, self.channel == "rayleigh")

    def settled(self) -> Self:
        """Return the same at `ratio` and `snr`."""
        return self.model_copy(update={"drawn_ratio": None, "drawn_snr": None})

    @property
    def most(self) -> float:
        """The largest ratio, for which there are layers."""
        return self.drawn_ratio[1] if self.drawn_ratio is not None else self.ratio

    def serves(self, trained: ReducerSettings) -> bool:
        """Tell whether there are layers for as many symbols."""
        return isinstance(trained, JsccConfig) and self.most <= trained.most

    def symbols(self, reduced: int) -> int:
        """Return the symbols: each is two numbers."""
        return reduced // 8
