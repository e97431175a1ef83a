"""Nested inputs and outputs: their values, selected samples, and padded or different copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pytest_evalmode.rules.wording import plural

PADDING = 3
"""How many padding tokens `add_padding` appends to a sequence."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in an output that are not containers, or empty ones, with their paths: `[0]['logits']`."""
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif hasattr(value, "__dataclass_fields__"):
        items = [(f"{path}.{name}", getattr(value, name)) for name in value.__dataclass_fields__]
    else:
        yield path, value
        return
    if not items:
        yield path, value
    for name, item in items:
        yield from leaves(item, name)


def copy_tensors(value: object) -> dict[str, Tensor]:
    """Return copies of the tensors in an output, by their paths in it."""
    return {path: copy_tensor(leaf) for path, leaf in leaves(value) if isinstance(leaf, Tensor)}


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a nested value with the function applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_tensors(item, function) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def copy_tensor(tensor: Tensor) -> Tensor:
    """Return a copy, because a model may change its inputs in place."""
    return tensor.detach().clone()


def different_tensor(tensor: Tensor) -> Tensor:
    """Return another tensor of the same shape and dtype: the elements in reverse order, or increased by one."""
    flipped = tensor.flip(tuple(range(tensor.dim())))
    return flipped + 1 if flipped.is_floating_point() and torch.equal(flipped, tensor) else flipped


def batch_size(batch: Any) -> int:
    """Return the number of samples of a batch.  Raises ValueError if it has fewer than two."""
    tensors = (leaf for _, leaf in leaves(batch) if isinstance(leaf, Tensor))
    size = next((len(tensor) for tensor in tensors if tensor.dim()), 0)
    if size < 2:
        raise ValueError(
            "assert_batch_independent(model, batch): expected tensors with at least two samples along the first "
            f"dimension, got {plural(size, 'sample')}"
        )
    return size


def select_samples(batch: Any, rows: list[int], size: int) -> Any:
    """Return some samples of a batch.  Tensors whose first dimension is not `size` stay whole."""
    return map_tensors(batch, lambda tensor: tensor[rows] if tensor.dim() and len(tensor) == size else tensor)


def add_padding(batch: Any) -> dict[str, Any] | None:
    """Return a tokenized batch with more padding on the right, or None if the batch cannot be padded this way."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    # In a batch that is padded on the left, positions would shift.  Explicit position ids cannot be extended.
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not mask[:, 0].all() or "position_ids" in batch:
        return None

    def padded(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, PADDING)) if tensor.shape == mask.shape else tensor

    return {name: map_tensors(value, padded) for name, value in batch.items()}
