"""The normalizing flows of zuko: a distribution is returned by the forward, its density is computed later."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.13.0", "zuko==1.6.0")
FLOWS = ("NICE", "MAF", "NSF", "SOSPF", "NAF", "UNAF", "CNF", "GF", "BPF", "GMM", "NCSF", "RealNVP", "AffineFlow")


def architectures() -> Iterator[Architecture]:
    """Yield each flow with and without a context, and its parts."""
    import zuko

    for name in FLOWS:
        flow = getattr(zuko.flows, name, None)
        if flow is not None:
            yield Architecture(name, partial(flow, 3), partial(_inputs, 0), _density)
            yield Architecture(f"{name}-context", partial(flow, 3, context=4), partial(_inputs, 4), _density)
    yield Architecture("MLP", partial(zuko.nn.MLP, 3, 2, hidden_features=[8]), _points, _forward)
    yield Architecture("MLP-normalized", partial(zuko.nn.MLP, 3, 2, normalize=True), _points, _forward)
    yield Architecture("MonotonicMLP", partial(zuko.nn.MonotonicMLP, 3, 2), _points, _forward)


def _points() -> dict[str, Any]:
    import torch

    return {"x": torch.rand(5, 3, generator=torch.Generator().manual_seed(0))}


def _inputs(context: int) -> dict[str, Any]:
    import torch

    return _points() | {"c": torch.ones(5, context) if context else None}


def _density(model: Any, x: Any, c: Any) -> object:
    return model(c).log_prob(x)


def _forward(model: Any, x: Any) -> object:
    return model(x)
