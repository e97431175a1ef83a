"""The classifiers, detectors, segmenters, video, optical flow and quantized models of torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand

REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1")
MAX_PARAMETERS = {"detection": 45_000_000, "video": 30_000_000}
"""How large a model may be, by kind; a classifier may have 13 million parameters."""


def architectures() -> Iterator[Architecture]:
    """Yield each registered model that is small enough."""
    from torchvision import models

    for name in models.list_models():
        _, _, *kinds, _ = f"{models.get_model_builder(name).__module__}.".split(".")
        kind = kinds[0]  # a subpackage, or the module of a classifier
        yield Architecture(name, partial(_build, name, kind), partial(_inputs, kind), _call)


def _build(name: str, kind: str) -> Any:
    import torch
    from torchvision import models

    settings: dict[str, Any] = {"weights": None}
    if kind in ("detection", "segmentation"):
        settings["weights_backbone"] = None
    if kind == "detection" and "ssd" not in name:
        settings |= {"min_size": 64, "max_size": 96}
    if kind == "quantization":
        settings["quantize"] = True
    else:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in models.get_model(name, **settings).parameters())
        if count > MAX_PARAMETERS.get(kind, 13_000_000):
            raise ValueError(f"{count // 1_000_000} million parameters")
    return models.get_model(name, **settings)


def _inputs(kind: str) -> dict[str, Any]:
    if kind == "detection":
        return {"args": ([rand(3, 64, 64)],), "is_detector": True}
    if kind == "video":
        return {"args": (rand(2, 3, 16, 64, 64),)}
    if kind == "optical_flow":
        return {"args": (rand(1, 3, 128, 128), rand(1, 3, 128, 128))}
    size = {"inception": 96, "vision_transformer": 224, "maxvit": 224}.get(kind, 64)
    return {"args": (rand(2, 3, size, size),)}


def _call(model: Any, args: tuple[Any, ...], is_detector: bool = False) -> object:
    import torch

    if not (is_detector and model.training):
        return model(*args)
    targets = {"boxes": torch.tensor([[1.0, 1.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    targets |= {"keypoints": torch.ones(1, 17, 3), "masks": torch.ones(1, 64, 64, dtype=torch.uint8)}
    return model(*args, [targets])  # the losses
