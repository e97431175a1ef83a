"""Diagnosis of a model that differs from its lock entry: loading, precision, renames, pruning and similar causes.

There is one module per family of causes. Each check sees the tensors that no earlier check has explained, and marks
those that it explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.checkpoint import (
    factors,
    loading,
    merging,
    precision,
    quantization,
    renamed_tensors,
    reordered_values,
)
from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained
from pytest_evalmode.lock.model_entry import ModelContents, TensorRecord
from pytest_evalmode.observe.state.fingerprint import undisturbed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Cause", "describe_causes", "diagnose"]

_MAX_NAMES = 10
# The order matters: a specific cause comes before a more general one that would also fit.
_CHECKS: tuple[Callable[[Unexplained], Cause | None], ...] = (
    renamed_tensors.find_renamed,
    quantization.find_quantized,
    merging.find_folded_norms,
    merging.find_adapter,
    precision.find_dtype_change,
    precision.find_rounding,
    factors.find_pruning,
    factors.find_scaling,
    reordered_values.find_exchanged,
    reordered_values.find_rearranged,
    loading.find_updated_statistics,
    quantization.find_fake_quantized,
    merging.find_merged_adapter,
    loading.find_not_loaded,
    loading.find_changed_values,
    renamed_tensors.find_missing_and_added,
)


def diagnose(locked: Mapping[str, TensorRecord], current: ModelContents, samples: Mapping[str, Array]) -> list[Cause]:
    """Return the causes that together explain how a model differs from its lock entry.

    Args:
        locked: The locked tensors, by qualified name.
        current: The contents of the model in this run.
        samples: The locked sample values: 2-D arrays of float32 or int64, as `sample_grid` returns them, by name.
    """
    diff = Unexplained(locked, current, samples)
    causes: list[Cause] = []
    with undisturbed():
        for check in _CHECKS:
            cause = check(diff)
            if cause is not None:
                causes.append(cause)
    return causes


def describe_causes(title: str, causes: list[Cause]) -> tuple[str, str, dict[str, object]]:
    """Return the headline, the finding and the details of a `model-changed` violation."""
    if [cause.kind for cause in causes] == ["renamed"]:
        words = f"only the names changed: {causes[0].words}"
    else:
        words = "; ".join(cause.words for cause in causes) or "the digest differs, but the tensors are the same"
    details: dict[str, object] = {"causes": {cause.kind: list(cause.tensors[:_MAX_NAMES]) for cause in causes}}
    return f"{title}: {words}", f"{title}: {words}", details
