"""The classifiers, detectors, segmenters, video and optical flow models of torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1")
MAX_PARAMETERS = 45_000_000


def architectures() -> Iterator[Architecture]:
    """Yield each registered model that is small enough."""
    from torchvision import models

    for name in models.list_models():
        yield Architecture(
            name, partial(_build, name), partial(_inputs, models.get_model_builder(name).__module__), _call
        )


def _build(name: str) -> Any:
    import torch
    from torchvision import models

    settings: dict[str, Any] = {"weights": None}
    if (
        "detection" in models.get_model_builder(name).__module__
        or "segmentation" in models.get_model_builder(name).__module__
    ):
        settings["weights_backbone"] = None
    if "quantization" in models.get_model_builder(name).__module__:
        return models.get_model(name, **settings, quantize=False)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in models.get_model(name, **settings).parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count} parameters")
    return models.get_model(name, **settings)


def _inputs(module: str) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    if "detection" in module:
        return {"args": ([torch.rand(3, 64, 64, generator=generator)],), "targets": True}
    if "video" in module:
        return {"args": (torch.rand(2, 3, 8, 64, 64, generator=generator),)}
    if "optical_flow" in module:
        return {
            "args": (torch.rand(1, 3, 128, 128, generator=generator), torch.rand(1, 3, 128, 128, generator=generator))
        }
    size = 299 if "inception" in module else 224 if "vision_transformer" in module or "maxvit" in module else 64
    return {"args": (torch.rand(2, 3, size, size, generator=generator),)}


def _call(model: Any, args: tuple[Any, ...], targets: bool = False) -> object:
    import torch

    if targets and model.training:  # a detector returns its losses
        boxes, labels = torch.tensor([[1.0, 1.0, 40.0, 40.0]]), torch.tensor([1])
        return model(
            *args,
            [
                {
                    "boxes": boxes,
                    "labels": labels,
                    "keypoints": torch.ones(1, 17, 3),
                    "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
                }
            ],
        )
    return model(*args)
