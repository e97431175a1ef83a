"""The convolutions, poolings and models of PyTorch Geometric, on one small graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.13.0", "torch_geometric==2.8.1")
SIZES = {"in_channels": 8, "out_channels": 8, "hidden_channels": 8, "channels": 8, "num_layers": 2, "dropout": 0.5}
SIZES |= {"heads": 2, "num_relations": 3, "num_nodes": 6, "edge_dim": 4, "dim": 2, "kernel_size": 3, "K": 2, "k": 2}


def architectures() -> Iterator[Architecture]:
    """Yield each layer and model that can be built from sizes alone and takes node features and edges."""
    import torch_geometric.nn as layers
    from torch import nn

    for name, layer in sorted(vars(layers).items()):
        if not (inspect.isclass(layer) and issubclass(layer, nn.Module)):
            continue
        needed = inspect.signature(layer).parameters
        taken = inspect.signature(layer.forward).parameters
        if "x" in taken and all(
            p in SIZES or p == "kwargs" or needed[p].default is not needed[p].empty for p in needed
        ):
            yield Architecture(
                name, partial(layer, **{p: SIZES[p] for p in needed if p in SIZES}), partial(_inputs, tuple(taken))
            )


def _inputs(names: tuple[str, ...]) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    known = {
        "x": torch.randn(6, 8, generator=generator),
        "edge_index": torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]]),
        "edge_attr": torch.randn(7, 4, generator=generator),
        "edge_type": torch.tensor([0, 1, 2, 0, 1, 2, 0]),
        "batch": torch.tensor([0, 0, 0, 1, 1, 1]),
        "index": torch.tensor([0, 0, 0, 1, 1, 1]),
        "pos": torch.randn(6, 2, generator=generator),
        "pseudo": torch.rand(7, 2, generator=generator),
    }
    return {name: known[name] for name in names if name in known}
