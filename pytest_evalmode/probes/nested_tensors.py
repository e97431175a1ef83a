"""Nests of tensors: inputs and outputs, their samples, and others like them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_evalmode.rules.wording import plural

PADDING = 3
"""How much longer a sequence is made."""


def tensors_of(value: object, path: str = "") -> dict[str, Tensor]:
    """The tensors of an output by their paths in it, as they are now."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    items: Sequence[tuple[str, object]] = []
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif hasattr(value, "__dataclass_fields__"):
        items = [(f"{path}.{name}", getattr(value, name)) for name in value.__dataclass_fields__]
    return {inner: tensor for name, item in items for inner, tensor in tensors_of(item, name).items()}


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nest of tensors with the function applied to each."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(item, function) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [mapped(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def fresh(tensor: Tensor) -> Tensor:
    """A copy: the model may use its inputs up."""
    return tensor.detach().clone()


def other(tensor: Tensor) -> Tensor:
    """One of the same kind that is another: its elements in reverse order, or larger by one."""
    turned = tensor.flip(tuple(range(tensor.dim())))
    return turned + 1 if turned.is_floating_point() and torch.equal(turned, tensor) else turned


def size_of(batch: Any) -> int:
    tensors = tensors_of(dict(batch) if isinstance(batch, Mapping) else batch)
    size = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
    if size < 2:
        raise ValueError(
            f"assert_batch_independent(model, batch): a batch of {plural(size, 'sample')}; it takes tensors with at "
            "least two samples along their first dimension"
        )
    return size


def pick(batch: Any, rows: list[int], size: int) -> Any:
    """Some samples of a batch."""
    return mapped(batch, lambda tensor: tensor[rows] if tensor.dim() and len(tensor) == size else tensor)


def with_padding(batch: Any) -> dict[str, Any] | None:
    """A tokenised batch with more padding on the right; None of what cannot be padded so."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        return None
    mask = batch["attention_mask"]
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    # Padding on the left would move what follows it; positions that are given say where they are.
    if not bool((mask[:, 0] != 0).all()) or "position_ids" in batch:
        return None
    return {
        name: nn.functional.pad(value, (0, PADDING), value=0)
        if isinstance(value, Tensor) and value.shape == mask.shape
        else value
        for name, value in batch.items()
    }
