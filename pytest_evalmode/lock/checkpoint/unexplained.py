"""The differences between a model and its lock entry that no cause explains yet, and the causes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Unexplained:
    """The differences between the locked and the current model that no cause explains yet."""

    locked: Mapping[str, TensorRecord]
    current: ModelContents
    samples: Mapping[str, Array]
    """Some values of each locked tensor."""
    current_names: dict[str, str] = field(default_factory=dict)
    """The current name of each locked tensor that still exists."""
    changed: dict[str, str] = field(default_factory=dict)
    """The entries of `current_names` whose tensors differ."""
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def current_tensor(self, name: str) -> Tensor:
        return self.current.tensors[self.current_names[name]]

    def current_record(self, name: str) -> TensorRecord:
        return self.current.records[self.current_names[name]]

    def sampled_values(self, name: str) -> tuple[Array, Array] | None:
        """Return the locked and the current values of a tensor at the sampled positions.

        Returns:
            Two 2-D arrays of the same shape, float32 or int64, or None if the tensor was not sampled or its shape
            changed.
        """
        old = self.samples.get(name)
        if old is None or old.ndim != 2 or self.locked[name].shape != self.current_record(name).shape:
            return None
        new = sample_grid(self.current_tensor(name), *old.shape)
        return None if new is None or new.shape != old.shape else (old, new)

    def mark_explained(self, names: Iterable[str]) -> None:
        for name in names:
            del self.changed[name]


def numel(record: TensorRecord) -> int:
    return int(np.prod(record.shape, dtype=object)) if record.shape else 1


def is_running_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in RUNNING_STATISTICS


def is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_quantized or tensor.layout is not torch.strided:
        return True
    return bool(tensor.detach().isfinite().all())


def is_other_checkpoint(diff: Unexplained, changed: Iterable[str]) -> bool:
    """Return whether at least 90% of the weights (tensors with two or more dimensions) are in `changed`."""
    weights = [name for name, record in diff.locked.items() if len(record.shape) > 1 and numel(record)]
    weights = weights or [name for name in diff.locked if not is_running_statistic(name)]
    return len(set(changed) & set(weights)) >= max(1, 0.9 * len(weights)) and len(weights) > 1


def largest_change(diff: Unexplained, names: Iterable[str]) -> float:
    """Return the largest absolute change among the sampled values of these tensors, 0.0 without samples."""
    pairs = [both for name in names if (both := diff.sampled_values(name)) is not None]
    return max((float(np.nanmax(np.abs(new.astype(float) - old))) for old, new in pairs), default=0.0)
