"""What codecs can be set to, as their settings and their implementations both know it."""

from typing import Literal

Bits = Literal[2, 3, 4, 6, 8]
Scale = Literal["token", "channel", "tensor"]
ScaleBits = Literal[16, 32]
Format = Literal["e4m3", "e5m2"]
MOST_CENTROIDS, MOST_SUBVECTORS = 256, 4096
