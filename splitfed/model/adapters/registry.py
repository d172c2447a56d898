"""All adapters."""

from typing import Annotated

from pydantic import Field

from splitfed.config import kind_shorthand
from splitfed.model.adapters.additions import Bottleneck, Hydra
from splitfed.model.adapters.lora import Lora
from splitfed.model.adapters.subsets import Attention, Fixed, Head, Norms, Whole

AdapterConfig = Annotated[
    Whole | Norms | Attention | Head | Fixed | Lora | Bottleneck | Hydra, Field(discriminator="kind"), kind_shorthand
]
