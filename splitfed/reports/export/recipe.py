"""How timm makes an exported model: the line of Python, and the config that timm reads on the Hub, or in a folder
under the name `config.json`. Both say what its images are like, and the config what its classes are called."""

import json
from typing import Any

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import timm

from splitfed.model.build import pixel_stats
from splitfed.scenario import Scenario


def create_line(scenario: Scenario, classes: int, file: str) -> str:
    """Return the line of Python that makes the scenario's model in timm and loads a file of its weights."""
    given: dict[str, Any] = {"num_classes": classes, **model_args(scenario), "checkpoint_path": file}
    given["pretrained_cfg_overlay"] = {"num_classes": classes, **preprocessing(scenario)}
    arguments = ", ".join(f"{name}={_literal(value)}" for name, value in given.items())
    return f"timm.create_model({_literal(scenario.model.name)}, {arguments})"


def hub_config(scenario: Scenario, classes: list[str]) -> dict[str, Any]:
    """Return the config of a model of these classes, as plain values of JSON."""
    images = {name: list(v) if isinstance(v, tuple) else v for name, v in preprocessing(scenario).items()}
    known = timm.get_pretrained_cfg(scenario.model.name)
    names = {name: getattr(known, name) for name in ("fixed_input_size", "first_conv", "classifier")} if known else {}
    return {
        "architecture": scenario.model.name.partition(".")[0],
        "num_classes": len(classes),
        "label_names": classes,
        "model_args": model_args(scenario),
        "pretrained_cfg": {**images, **names},
    }


def model_args(scenario: Scenario) -> dict[str, Any]:
    """Return what timm makes the model of, beside its name and its classes."""
    return {"img_size": scenario.model.image_size, **scenario.model.args}


def preprocessing(scenario: Scenario) -> dict[str, Any]:
    """Return how images become the model's input, in the words of timm's `pretrained_cfg`: the short side is resized,
    the middle square is taken whole, and pixels are normalised."""
    mean, std = pixel_stats(scenario.model)
    size = scenario.model.image_size
    return {
        "input_size": (3, size, size), "test_input_size": None, "crop_pct": 1.0, "test_crop_pct": None,
        "crop_mode": "center", "interpolation": "bicubic", "mean": mean, "std": std,
    }  # fmt: skip


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
