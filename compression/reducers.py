"""All reducers that a scenario can name, as one union by `kind`: those of splitfed and those of plug-ins."""

from typing import TYPE_CHECKING

from splitfed.compression.adc import AdcConfig
from splitfed.compression.ae import AeConfig
from splitfed.compression.bottleneck import BottleneckConfig
from splitfed.compression.c3sl import C3slConfig
from splitfed.compression.discard_tokens import DiscardTokensConfig
from splitfed.compression.merge_samples import MergeSamplesConfig
from splitfed.compression.none import NoneConfig
from splitfed.compression.reducer import ReducerSettings
from splitfed.compression.topk import RandomTopKConfig, TopKConfig
from splitfed.plugins import REDUCERS, load, one_of

OWN: tuple[type[ReducerSettings], ...] = (
    NoneConfig, AdcConfig, MergeSamplesConfig, DiscardTokensConfig, TopKConfig, RandomTopKConfig, C3slConfig,
    BottleneckConfig, AeConfig,
)  # fmt: skip
PLUGINS = load(REDUCERS, ReducerSettings, OWN)

if TYPE_CHECKING:
    ReducerConfig = ReducerSettings
else:
    ReducerConfig = one_of(OWN, PLUGINS)
