"""All reducers that a scenario can name, as one union by `kind`: those of splitfed and those of plug-ins."""

from typing import TYPE_CHECKING

from splitfed.compression.plugins import REDUCERS, load, one_of
from splitfed.compression.reducers.adc import AdcConfig
from splitfed.compression.reducers.base import ReducerSettings
from splitfed.compression.reducers.none import NoneConfig
from splitfed.compression.reducers.samples.c3sl import C3slConfig
from splitfed.compression.reducers.samples.merge_samples import MergeSamplesConfig
from splitfed.compression.reducers.tokens.discard_tokens import DiscardTokensConfig
from splitfed.compression.reducers.trained.autoencoder import AeConfig
from splitfed.compression.reducers.trained.bottleneck import BottleneckConfig
from splitfed.compression.reducers.values.topk import RandomTopKConfig, TopKConfig

OWN: tuple[type[ReducerSettings], ...] = (
    NoneConfig, AdcConfig, MergeSamplesConfig, DiscardTokensConfig, TopKConfig, RandomTopKConfig, C3slConfig,
    BottleneckConfig, AeConfig,
)  # fmt: skip
PLUGINS = load(REDUCERS, ReducerSettings, OWN)

if TYPE_CHECKING:
    ReducerConfig = ReducerSettings
else:
    ReducerConfig = one_of(OWN, PLUGINS)
