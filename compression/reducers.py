"""All reducers that a scenario can name, as one union by `kind`."""

from typing import Annotated

from pydantic import Field

from splitfed.compression.adc import AdcConfig
from splitfed.compression.c3sl import C3slConfig
from splitfed.compression.discard_tokens import DiscardTokensConfig
from splitfed.compression.merge_samples import MergeSamplesConfig
from splitfed.compression.none import NoneConfig
from splitfed.compression.topk import RandomTopKConfig, TopKConfig
from splitfed.config import kind_shorthand

ReducerConfig = Annotated[
    NoneConfig | AdcConfig | MergeSamplesConfig | DiscardTokensConfig | TopKConfig | RandomTopKConfig | C3slConfig,
    Field(discriminator="kind"),
    kind_shorthand,
]
