"""Each decoder of segmentation-models-pytorch on three encoders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand

REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31", "segmentation-models-pytorch==0.6.0")

DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer".split()
ENCODERS = ("resnet18", "mobilenet_v2", "timm-efficientnet-lite0")


def architectures() -> Iterator[Architecture]:
    """Yield each pair, without and with a classification head, whose dropout depends on the mode."""
    for decoder in DECODERS:
        for encoder in ENCODERS:
            yield Architecture(f"{decoder}, {encoder}", partial(_build, decoder, encoder), _images)
        head = {"aux_params": {"classes": 3, "dropout": 0.5}}
        yield Architecture(f"{decoder}, classes", partial(_build, decoder, "resnet18", **head), _images)


def _build(decoder: str, encoder: str, **settings: Any) -> Any:
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, decoder)(encoder, encoder_weights=None, classes=2, **settings)


def _images() -> dict[str, Any]:
    return {"x": rand(2, 3, 64, 64)}
