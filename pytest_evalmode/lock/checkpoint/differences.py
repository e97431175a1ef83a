"""The tensors in which a model differs from its lock entry, as far as no cause explains them yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pytest_evalmode.lock.causes.cause import Array, Step
from pytest_evalmode.lock.model_entry import ModelContents, TensorRecord, sample_grid
from pytest_evalmode.rules.wording import first_and_more

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

    @cached_property
    def current(self) -> Tensor:
        """All current values, flat and in float32 or float64; empty if they are not plain numbers."""
        tensor = self.tensor.detach()
        if tensor.is_quantized or tensor.is_complex() or tensor.layout is not torch.strided:
            return torch.empty(0)
        return tensor.reshape(-1).cpu().to(torch.promote_types(tensor.dtype, torch.float32))

    @property
    def constant(self) -> float | None:
        """The value that all elements have, or None."""
        values = self.current
        return float(values[0]) if len(values) and bool((values == values[0]).all()) else None


@dataclass(slots=True)
class Differences:
    """The differences between the locked and the current model that no cause explains yet."""

    locked: Mapping[str, TensorRecord]
    locked_architecture: Mapping[str, str]
    contents: ModelContents
    samples: Mapping[str, Array]
    """Some values of each locked tensor."""
    current_names: dict[str, str] = field(default_factory=dict)
    """The current name of each locked tensor that still exists."""
    changed: dict[str, ChangedTensor] = field(default_factory=dict)
    """By the locked name."""
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def mark_explained(self, names: Iterable[str]) -> None:
        for name in names:
            self.changed.pop(name, None)

    def explain_each(self, explain: Callable[[ChangedTensor], Step | None]) -> list[Cause]:
        """Explain each tensor on its own; tensors with the same words share a cause.

        The words have `{names}`, `{was}` or `{has}` in place of the tensors and the verb, and `{}` in place of
        `details["value"]`, which differs from tensor to tensor.
        """
        groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for name, tensor in self.changed.items():
            step = explain(tensor)
            if step is not None:
                groups[step.kind, step.words][name] = str(step.details.get("value"))
        causes = []
        for (kind, words), values in groups.items():
            self.mark_explained(values)
            distinct = list(dict.fromkeys(values.values()))
            shown = ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")
            was, has = ("was", "has") if len(values) == 1 else ("were", "have")
            text = words.format(shown, names=first_and_more(list(values)), was=was, has=has)
            causes.append(Cause(kind, text, tuple(values)))
        return causes

    def covers_model(self, names: Iterable[str]) -> bool:
        """Return whether these are at least 90% of the weights (tensors with two or more dimensions)."""
        weights = [name for name, record in self.locked.items() if len(record.shape) > 1 and 0 not in record.shape]
        weights = weights or [name for name in self.locked if not is_running_statistic(name)]
        return len(set(names) & set(weights)) >= max(1, 0.9 * len(weights)) and len(weights) > 1


def cast(values: Array, dtype: str) -> Array:
    """Return values after a cast to a dtype of torch, as float64."""
    if dtype in FLOAT_DTYPES and values.dtype.kind == "f":
        values = torch.from_numpy(values).to(getattr(torch, dtype)).double().numpy()
    array: Array = values.astype(np.float64)
    return array


def equal(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def is_running_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def owner_of(name: str) -> str:
    """Return the path of the module that has a tensor."""
    return name.rpartition(".")[0]


def different_parts(name: str, other: str) -> tuple[str, str]:
    """Return two names without the last parts that they share: the layers, for the same tensor of two layers."""
    a, b = name.split("."), other.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop(), b.pop()
    return ".".join(a), ".".join(b)


def largest_change(tensors: Iterable[ChangedTensor]) -> float:
    """Return the largest absolute change among the sampled values of these tensors, 0.0 without samples."""
    changes = [np.abs(both[1] - both[0]) for tensor in tensors if (both := tensor.values) is not None]
    return max((float(change[np.isfinite(change)].max(initial=0.0)) for change in changes), default=0.0)
