"""All reducers that a scenario can name, as one union by `kind`: those of splitfed and those of plug-ins."""

from typing import TYPE_CHECKING

from splitfed.compression.plugins import REDUCERS, load, one_of
from splitfed.compression.reducers.settings import (
    AdcConfig,
    AeConfig,
    BottleneckConfig,
    C3slConfig,
    DiscardTokensConfig,
    JsccConfig,
    MergeSamplesConfig,
    NoneConfig,
    RandomTopKConfig,
    ReducerSettings,
    SemanticTokensConfig,
    TopKConfig,
)  # fmt: skip

OWN: tuple[type[ReducerSettings], ...] = (
    NoneConfig, AdcConfig, MergeSamplesConfig, DiscardTokensConfig, SemanticTokensConfig, TopKConfig, RandomTopKConfig,
    C3slConfig, BottleneckConfig, AeConfig, JsccConfig,
)  # fmt: skip
PLUGINS = load(REDUCERS, ReducerSettings, OWN)

if TYPE_CHECKING:
    ReducerConfig = ReducerSettings
else:
    ReducerConfig = one_of(OWN, PLUGINS)
