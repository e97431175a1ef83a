"""A model that is not the one that was locked -> how it differs, in the words of the field.

One file a family of causes.  Each question looks at the tensors that no earlier one has explained, and takes away those
that it explains.
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

_MOST_NAMES = 10
_QUESTIONS: tuple[Callable[[Unexplained], Cause | None], ...] = (
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


def diagnose(was: Mapping[str, TensorRecord], now: ModelContents, samples: Mapping[str, Array]) -> list[Cause]:
    """The causes that together make of the locked model the live one, in the order in which they are told."""
    case = Unexplained(was, now, samples)
    causes: list[Cause] = []
    with undisturbed():
        for question in _QUESTIONS:
            cause = question(case)
            if cause is not None:
                causes.append(cause)
    return causes


def describe_causes(title: str, causes: list[Cause]) -> tuple[str, str, dict[str, object]]:
    """The headline, the finding and the details of what became of a model."""
    if [cause.kind for cause in causes] == ["renamed"]:
        words = f"only the names changed: {causes[0].words}"
    else:
        words = "; ".join(cause.words for cause in causes) or "its digest is another, and its tensors are the same"
    details: dict[str, object] = {"causes": {cause.kind: list(cause.tensors[:_MOST_NAMES]) for cause in causes}}
    return f"{title}: {words}", f"{title}: {words}", details
