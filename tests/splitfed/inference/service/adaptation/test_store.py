"""What was adapted, on disk: as it was, or refused; and forgotten by whoever asks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from splitfed.errors import RunError
from splitfed.inference.service.adaptation import store
from splitfed.inference.service.adaptation.store import NAME, Adapted
from splitfed.run.folder import locked


def adapted() -> Adapted:
    states = {
        name: {"student/back.norm.weight": torch.randn(3), "teacher_momentum/back.norm.weight": torch.randn(3)}
        for name in ("3", "4")
    }
    return Adapted("abc", "whole", "run", ("f1", "f2"), {"3": (5, 40), "4": (1, 8)}, states)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert store.load(tmp_path) is None
    store.store(written := adapted(), tmp_path)
    found = store.load(tmp_path)
    assert found is not None
    assert [getattr(found, name) for name in ("base", "norms", "teacher", "fronts", "learnt")] == [
        getattr(written, name) for name in ("base", "norms", "teacher", "fronts", "learnt")
    ]
    for name, state in written.states.items():
        assert state.keys() == found.states[name].keys()
        assert all(torch.equal(tensor, found.states[name][own]) for own, tensor in state.items())


def test_what_is_broken_is_told_with_the_way_out(tmp_path: Path) -> None:
    store.store(adapted(), tmp_path)
    good = (tmp_path / NAME).read_bytes()
    other = bytearray(good)
    other[-1] ^= 1  # still a file of safetensors
    for broken in (b"", good[:-5], bytes(other), save({"3/x": torch.ones(1)}), save({}, {"splitfed": "[1]"})):
        (tmp_path / NAME).write_bytes(broken)
        with pytest.raises(RunError, match=r"adapted.safetensors: broken file .* splitfed adapted RUN --forget"):
            store.load(tmp_path)
        assert store.forget(tmp_path, None)
        assert store.load(tmp_path) is None


def test_a_clients_own_is_forgotten_alone(tmp_path: Path) -> None:
    store.store(adapted(), tmp_path)
    assert store.forget(tmp_path, 3)
    found = store.load(tmp_path)
    assert found is not None
    assert (list(found.learnt), list(found.states)) == (["4"], ["4"])


def test_where_a_service_has_the_folder_it_is_asked(tmp_path: Path) -> None:
    store.store(adapted(), tmp_path)
    for owner in (None, 3):
        with locked(tmp_path):
            assert not store.forget(tmp_path, owner)
            assert store.load(tmp_path) is not None
            assert store.wished(tmp_path)
            assert store.wish(tmp_path) == (owner,)
            assert store.wish(tmp_path) is None
    (tmp_path / "forget").write_text("nonsense")
    assert store.wish(tmp_path) is None
    assert not store.wished(tmp_path)
