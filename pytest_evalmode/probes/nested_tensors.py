"""Nested inputs and outputs: their tensors, selected samples, and padded or different copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_evalmode.rules.wording import plural

PADDING = 3
"""How many padding tokens `add_padding` appends to a sequence."""


def copy_tensors(value: object, path: str = "") -> dict[str, Tensor]:
    """Return copies of the tensors in an output, by their path in it: `[0]['logits']`."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    items: Sequence[tuple[str, object]] = []
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif hasattr(value, "__dataclass_fields__"):
        items = [(f"{path}.{name}", getattr(value, name)) for name in value.__dataclass_fields__]
    return {inner: tensor for name, item in items for inner, tensor in copy_tensors(item, name).items()}


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
    tensors = copy_tensors(dict(batch) if isinstance(batch, Mapping) else batch)
    size = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
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
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        return None
    mask = batch["attention_mask"]
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    # In a batch that is padded on the left, positions would shift.  Explicit position ids cannot be extended.
    if not bool((mask[:, 0] != 0).all()) or "position_ids" in batch:
        return None
    return {
        name: nn.functional.pad(value, (0, PADDING), value=0)
        if isinstance(value, Tensor) and value.shape == mask.shape
        else value
        for name, value in batch.items()
    }
