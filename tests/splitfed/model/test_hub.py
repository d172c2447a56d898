"""The Hub without a network: it is asked once, and its libraries are told not to try again and again."""

from collections.abc import Iterator

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from splitfed.model import hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the user not have set offline mode; yield what is asked of the Hub, which never answers."""
    asked: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append(url)
            raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    cached = hub.reachable
    cached.cache_clear()
    yield asked
    cached.cache_clear()


def test_it_is_asked_once_and_then_left_alone(online: list[str]) -> None:
    for _ in range(2):
        with hub.patient_only_online(), pytest.raises(LocalEntryNotFoundError):
            hf_hub_download("timm/vit_tiny_patch16_224", "model.safetensors")
    assert online == [constants.ENDPOINT]
    assert constants.HF_HUB_OFFLINE is False


def test_it_is_not_asked_where_the_user_is_offline(online: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    assert not online


def test_libraries_are_left_as_they_are_where_it_answers(online: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitfed.model.hub.reachable", lambda: True)
    with hub.patient_only_online():
        assert constants.HF_HUB_OFFLINE is False
