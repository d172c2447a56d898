"""What a run writes down about the machine that it ran on."""

import json

import torch

from splitfed.run.folder import write_environment


def gpus(folder) -> list[str]:
    write_environment(folder, 1, {"client": "cuda:1", "server": "cpu"})
    return json.loads((folder / "environment.json").read_text())[-1]["gpus"]


def test_gpus_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    assert gpus(tmp_path) == ["card of cuda:1"]


def test_a_gpu_of_another_machine_is_not_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus(tmp_path) == []
