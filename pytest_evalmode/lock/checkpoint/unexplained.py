"""What has yet to be explained of a model that is not the one that was locked, and what a cause of it is."""

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
    """One thing that became of a model; `words` go on from "model (ResNet): "."""

    kind: str
    words: str
    tensors: tuple[str, ...] = ()


@dataclass(slots=True)
class Unexplained:
    """What has yet to be explained."""

    locked: Mapping[str, TensorRecord]
    current: ModelContents
    samples: Mapping[str, Array]
    current_names: dict[str, str] = field(default_factory=dict)
    """The live name of each locked tensor that still has one."""
    changed: dict[str, str] = field(default_factory=dict)
    """Those of the pairs that differ."""
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def current_tensor(self, name: str) -> Tensor:
        return self.current.tensors[self.current_names[name]]

    def current_record(self, name: str) -> TensorRecord:
        return self.current.records[self.current_names[name]]

    def sampled_values(self, name: str) -> tuple[Array, Array] | None:
        """The values that were kept of a tensor, and what they are now."""
        old = self.samples.get(name)
        if old is None or old.ndim != 2 or self.locked[name].shape != self.current_record(name).shape:
            return None
        new = sample_grid(self.current_tensor(name), *old.shape)
        return None if new is None or new.shape != old.shape else (old, new)

    def mark_explained(self, names: Iterable[str]) -> None:
        for name in names:
            del self.changed[name]


def numel(line: TensorRecord) -> int:
    return int(np.prod(line.shape, dtype=object)) if line.shape else 1


def is_running_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in RUNNING_STATISTICS


def is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_quantized or tensor.layout is not torch.strided:
        return True
    return bool(tensor.detach().isfinite().all())


def is_other_checkpoint(case: Unexplained, changed: Iterable[str]) -> bool:
    """Whether so much changed that it is another checkpoint: nine in ten of the matrices and kernels."""
    weights = [name for name, line in case.locked.items() if len(line.shape) > 1 and numel(line)]
    weights = weights or [name for name in case.locked if not is_running_statistic(name)]
    return len(set(changed) & set(weights)) >= max(1, 0.9 * len(weights)) and len(weights) > 1


def largest_change(case: Unexplained, names: Iterable[str]) -> float:
    """How far the values that were kept have moved at most."""
    pairs = [both for name in names if (both := case.sampled_values(name)) is not None]
    return max((float(np.nanmax(np.abs(new.astype(float) - old))) for old, new in pairs), default=0.0)
