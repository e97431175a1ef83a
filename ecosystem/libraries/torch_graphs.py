"""Models of torch.nn that are scripted, traced, exported, compiled, quantized or wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.13.0",)


def architectures() -> Iterator[Architecture]:
    """Yield each form of a convolutional, a recurrent and a transformer model."""
    import torch
    from torch import nn

    models: dict[str, Callable[[], Any]] = {
        "convolutional": lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten()
        ),
        "transformer": lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        "perceptron": lambda: nn.Sequential(
            nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 2)
        ),
    }
    inputs = {
        "convolutional": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "transformer": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),
        "perceptron": torch.randn(2, 8, generator=torch.Generator().manual_seed(0)),
    }
    forms: dict[str, Callable[[Any, Any], Any]] = {
        "plain": lambda model, x: model,
        "scripted": lambda model, x: torch.jit.script(model),
        "traced": lambda model, x: torch.jit.trace(model.eval(), x),  # type: ignore[no-untyped-call]
        "exported": lambda model, x: torch.export.export(model.eval(), (x,)).module(),
        "compiled": lambda model, x: torch.compile(model, backend="eager"),
        "traced by fx": lambda model, x: torch.fx.symbolic_trace(model),
        "averaged": lambda model, x: torch.optim.swa_utils.AveragedModel(model),
        "data parallel": lambda model, x: nn.DataParallel(model),
        "frozen": lambda model, x: model.requires_grad_(False),
        "half": lambda model, x: model.bfloat16(),
        "weight normed": lambda model, x: _weight_normed(model),
        "checkpointed": lambda model, x: _checkpointed(model),
    }
    for kind, build in models.items():
        for form, change in forms.items():
            x = inputs[kind].bfloat16() if form == "half" else inputs[kind]
            yield Architecture(f"{kind}, {form}", partial(_made, build, change, x), partial(_inputs, x), _call)


def _made(build: Callable[[], Any], change: Callable[[Any, Any], Any], x: Any) -> Any:
    return change(build(), x)


def _inputs(x: Any) -> dict[str, Any]:
    return {"x": x}


def _call(model: Any, x: Any) -> object:
    return model(x)


def _weight_normed(model: Any) -> Any:
    from torch import nn

    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and type(module).__name__ != "NonDynamicallyQuantizableLinear":
            nn.utils.parametrizations.weight_norm(module)
    return model


def _checkpointed(model: Any) -> Any:
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return checkpoint(self.model, x, use_reentrant=False)

    return Checkpointed()
