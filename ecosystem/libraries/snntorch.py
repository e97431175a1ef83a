"""The spiking neurons of snntorch: their membranes are state from forward to forward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand

REQUIREMENTS = ("torch==2.13.0", "snntorch==1.0.0")

NEURONS: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.9},
    "RLeaky": {"beta": 0.9, "linear_features": 8},
    "Synaptic": {"alpha": 0.9, "beta": 0.8},
    "RSynaptic": {"alpha": 0.9, "beta": 0.8, "linear_features": 8},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.9},
    "SLSTM": {"input_size": 8, "hidden_size": 8},
    "LeakyParallel": {"input_size": 8, "hidden_size": 8},
}


def architectures() -> Iterator[Architecture]:
    """Yield each neuron, with the membrane passed by hand or kept by the neuron, alone and in a network."""
    for name, settings in NEURONS.items():
        yield Architecture(name, partial(_build, name, settings), _inputs)
        if name != "LeakyParallel":
            kept = settings | {"init_hidden": True}
            yield Architecture(f"{name}, hidden kept", partial(_build, name, kept), _inputs)
            yield Architecture(f"{name}, network", partial(_network, name, kept), _inputs, _steps)
            learned = settings | {"learn_threshold": True}
            yield Architecture(f"{name}, learned threshold", partial(_build, name, learned), _inputs)


def _build(name: str, settings: dict[str, Any]) -> Any:
    import snntorch

    return getattr(snntorch, name)(**settings)


def _network(name: str, settings: dict[str, Any]) -> Any:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), _build(name, settings))


def _inputs() -> dict[str, Any]:
    return {"input_": rand(2, 8)}


def _steps(model: Any, input_: Tensor) -> object:
    import snntorch.utils

    snntorch.utils.reset(model)
    return [model(input_) for _ in range(3)]
