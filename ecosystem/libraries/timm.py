"""The image models of timm: each that has at most ten million parameters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31")
MAX_PARAMETERS = 10_000_000


def architectures() -> Iterator[Architecture]:
    """Yield each registered model that is small enough."""
    import timm

    for name in timm.list_models():
        yield Architecture(name, partial(_build, name), partial(_inputs, name), _call)


def _build(name: str) -> Any:
    import timm
    import torch

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in timm.create_model(name, num_classes=7).parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count} parameters")
    return timm.create_model(name, num_classes=7)


def _inputs(name: str) -> dict[str, Any]:
    import timm
    import torch

    size = timm.get_pretrained_cfg(name)
    channels, height, width = size.input_size if size and size.fixed_input_size else (3, 96, 96)
    return {"x": torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))}


def _call(model: Any, x: Any) -> object:
    return model(x)
