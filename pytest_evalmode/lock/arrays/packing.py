"""What is kept of arrays, as safetensors can hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_evalmode.lock.arrays.stream import Stream

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def pack_streams(streams: Mapping[str, Stream]) -> dict[str, Array]:
    """What is kept of the streams, as safetensors can hold it."""
    found: dict[str, Array] = {}
    for name, stream in streams.items():
        if stream.stored_parts:
            found[name] = _stored(stream.stored_values())
        if not stream.is_complete and stream.digests:
            found[f"{name}#digests"] = np.asarray(stream.digests, np.uint64)
        if not stream.is_complete and stream.sketch.count:
            found[f"{name}#sketch"] = stream.sketch.sums
    return found


def restore_values(kept: Array, dtype: str) -> Array:
    """What was kept of an array, as it was before it was packed."""
    if dtype == "text" and kept.dtype == np.uint8:
        try:
            return np.asarray(json.loads(kept.tobytes()), dtype=str)
        except (ValueError, RecursionError):
            return kept
    if dtype.startswith("complex") and kept.ndim and kept.shape[-1] == 2:
        return np.asarray(kept[..., 0] + 1j * kept[..., 1])
    return kept.view(dtype) if dtype.startswith("datetime64") and kept.dtype == np.int64 else kept


def _stored(values: Array) -> Array:
    if values.dtype.kind in "US":
        return np.frombuffer(json.dumps(values.astype(str).tolist()).encode(), np.uint8)
    if values.dtype.kind == "c":
        return np.stack([values.real, values.imag], -1)
    return values.view(np.int64) if values.dtype.kind == "M" else values
