"""The Hugging Face Hub where there may be no network: asked once, briefly, and then left alone.

Its libraries try again and again for half a minute and more. Where the Hub does not answer, they are told to be
offline: what is in their cache is found all the same, and what is not is an error at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_SECONDS = 5.0  # to connect, and to answer


@cache
def reachable() -> bool:
    """Tell whether the Hub answers; asked once for a process, at most 10 seconds. No where the user has set offline
    mode."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # httpx or requests, by the version of huggingface_hub
        return False
    return True


@contextmanager
def patient_only_online() -> Iterator[None]:
    """Let the Hub's libraries use their caches alone within the `with` block, unless the Hub is reachable."""
    if reachable():
        yield
        return
    from huggingface_hub import constants

    known: list[Any] = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [module.HF_HUB_OFFLINE for module in known]
    for module in known:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(known, before, strict=True):
            module.HF_HUB_OFFLINE = value
