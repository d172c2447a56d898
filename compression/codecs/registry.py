"""All codecs that a scenario can name, as one union by `kind`: those of splitfed and those of plug-ins."""

from typing import TYPE_CHECKING

from splitfed.compression.codecs.base import CodecSettings
from splitfed.compression.codecs.settings import OWN
from splitfed.compression.plugins import CODECS, Plugin, installed, one_of


def _plugins() -> list[Plugin[CodecSettings]]:
    """Return the plug-ins, which are not used before their decoders are known: these alone need torch."""
    if not installed(CODECS):
        return []
    from splitfed.compression.codecs.decoders import PLUGINS

    return PLUGINS


PLUGINS = _plugins()

if TYPE_CHECKING:
    CodecConfig = CodecSettings
else:
    CodecConfig = one_of(OWN, PLUGINS)
