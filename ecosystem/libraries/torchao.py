"""Models whose linear layers torchao quantizes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand

REQUIREMENTS = ("torch==2.13.0", "torchao==0.18.0")

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Int8WeightOnlyConfig": {},
    "Int8DynamicActivationInt8WeightConfig": {},
    "Float8WeightOnlyConfig": {},
    "Int4WeightOnlyConfig": {"group_size": 32},
    "IntxWeightOnlyConfig": {},
}


def architectures() -> Iterator[Architecture]:
    """Yield a perceptron and a transformer for each configuration."""
    for name, settings in CONFIGURATIONS.items():
        for model, shape in ((_perceptron, (4, 64)), (_transformer, (2, 5, 64))):
            build = partial(_quantized, model, name, settings)
            yield Architecture(f"{model.__name__.strip('_')}, {name}", build, partial(_inputs, shape))


def _perceptron() -> Any:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64))


def _transformer() -> Any:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 2, 64, batch_first=True), 2, enable_nested_tensor=False)


def _quantized(build: Any, name: str, settings: dict[str, Any]) -> Any:
    import torchao.quantization

    model = build()
    torchao.quantization.quantize_(model, getattr(torchao.quantization, name)(**settings))
    return model


def _inputs(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"input" if len(shape) == 2 else "src": rand(*shape)}
