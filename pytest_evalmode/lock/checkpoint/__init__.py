"""Diagnosis of a model that differs from its lock entry: architecture, loading, precision, names, order and more.

There is one module per family of causes. Each check sees the tensors that no earlier check has explained, and marks
those that it explains. A cause is named only if it reproduces all that is known of the locked tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_evalmode.lock.causes.cause import Array
from pytest_evalmode.lock.checkpoint import adapters, equal_tensors, loading, pairing, quantization, tensor_causes
from pytest_evalmode.lock.checkpoint.architecture_changes import find_architecture_changes
from pytest_evalmode.lock.checkpoint.differences import Cause, Differences
from pytest_evalmode.lock.lock_file import Entry
from pytest_evalmode.lock.model_entry import ModelContents, parse_architecture, parse_records
from pytest_evalmode.observe.state.fingerprint import undisturbed

__all__ = ["Cause", "describe_causes", "diagnose"]

_MAX_NAMES = 10
# The order matters: the first pairs the tensors, and the second shows what these do not already show. Then, what all
# values prove comes first, and what needs fewer parameters before what needs more.
_CHECKS: tuple[Callable[[Differences], Cause | list[Cause] | None], ...] = (
    pairing.find_renamed,
    find_architecture_changes,
    quantization.find_quantized,
    adapters.find_adapter,
    tensor_causes.find_dtype_change,
    loading.find_not_finite,
    equal_tensors.find_copied,
    equal_tensors.find_moved,
    loading.find_not_loaded,
    loading.find_updated_statistics,
    tensor_causes.find_causes,
    loading.find_changed_values,
    pairing.find_missing_and_added,
)


def diagnose(record: Entry, current: ModelContents, samples: Mapping[str, Array]) -> list[Cause]:
    """Return the causes that together explain how a model differs from its record.

    `samples` are the locked values that `sample_grid` returned, by the name of their tensor.
    """
    diff = Differences(parse_records(record), parse_architecture(record), current, samples)
    causes: list[Cause | None] = []
    with undisturbed():
        for check in _CHECKS:
            found = check(diff)
            causes += found if isinstance(found, list) else [found]
    return [cause for cause in causes if cause is not None]


def describe_causes(title: str, causes: list[Cause]) -> tuple[str, dict[str, object]]:
    """Return the headline and the details of a `model-changed` violation."""
    if [cause.kind for cause in causes] == ["renamed"]:
        words = f"only the names changed: {causes[0].words}"
    else:
        words = "; ".join(cause.words for cause in causes) or "the digest differs, but the tensors are the same"
    details: dict[str, object] = {"causes": {cause.kind: list(cause.tensors[:_MAX_NAMES]) for cause in causes}}
    return f"{title}: {words}", details
