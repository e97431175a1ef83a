"""The tensors in which a model differs from its lock entry, as far as no cause explains them yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_evalmode.lock.model_entry import ModelContents, TensorRecord, sample_grid

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why a model differs; `words` continue the message "model (ResNet): ..."."""

    kind: str
    words: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangedTensor:
    """One tensor as it was locked, and as it is now."""

    name: str
    was: TensorRecord
    now: TensorRecord
    tensor: Tensor
    sample: Array | None
    """The locked values of a grid, in float32 or int64."""

    @cached_property
    def values(self) -> tuple[Array, Array] | None:
        """The locked values in the current dtype, and the current ones at the same positions, both in float64.

        None if the tensor was not sampled, or has another shape.
        """
        if self.sample is None or self.sample.ndim != 2 or self.was.shape != self.now.shape:
            return None
        now = sample_grid(self.tensor, *self.sample.shape)
        if now is None or now.shape != self.sample.shape:
            return None
        return cast(self.sample, self.now.dtype), now.astype(np.float64)

    @property
    def is_cast(self) -> bool:
        """Whether another floating-point dtype explains all that is known of the difference."""
        both = self.values
        return self.was.dtype != self.now.dtype and both is not None and equal(*both)

    @cached_property
    def current(self) -> Tensor:
        """All current values, flat and in float32 or float64; empty if they are not plain numbers."""
        tensor = self.tensor.detach()
        if tensor.is_quantized or tensor.is_complex() or tensor.layout is not torch.strided:
            return torch.empty(0)
        return tensor.reshape(-1).cpu().to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(slots=True)
class Differences:
    """The differences between the locked and the current model that no cause explains yet."""

    locked: Mapping[str, TensorRecord]
    contents: ModelContents
    samples: Mapping[str, Array]
    """Some values of each locked tensor."""
    current_names: dict[str, str] = field(default_factory=dict)
    """The current name of each locked tensor that still exists."""
    changed: dict[str, ChangedTensor] = field(default_factory=dict)
    """By the locked name."""
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def add_changed(self, name: str) -> None:
        new = self.current_names[name]
        records, tensors = self.contents.records, self.contents.tensors
        self.changed[name] = ChangedTensor(name, self.locked[name], records[new], tensors[new], self.samples.get(name))

    def mark_explained(self, names: Iterable[str]) -> None:
        for name in names:
            self.changed.pop(name, None)

    def covers_model(self, names: Iterable[str]) -> bool:
        """Return whether these are at least 90% of the weights (tensors with two or more dimensions)."""
        weights = [name for name, record in self.locked.items() if len(record.shape) > 1 and 0 not in record.shape]
        weights = weights or [name for name in self.locked if not is_running_statistic(name)]
        return len(set(names) & set(weights)) >= max(1, 0.9 * len(weights)) and len(weights) > 1


def cast(values: Array, dtype: str) -> Array:
    """Return values after a cast to a dtype of torch, as float64."""
    target = getattr(torch, dtype, None)
    array: Array = values.astype(np.float64)
    if dtype in FLOAT_DTYPES and values.dtype.kind == "f" and isinstance(target, torch.dtype):
        array = torch.from_numpy(values).to(target).double().numpy()
    return array


def equal(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def is_running_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in RUNNING_STATISTICS


def owner_of(name: str) -> str:
    """Return the path of the module that has a tensor."""
    return name.rpartition(".")[0]


def largest_change(tensors: Iterable[ChangedTensor]) -> float:
    """Return the largest absolute change among the sampled values of these tensors, 0.0 without samples."""
    changes = [np.abs(both[1] - both[0]) for tensor in tensors if (both := tensor.values) is not None]
    return max((float(change[np.isfinite(change)].max(initial=0.0)) for change in changes), default=0.0)
