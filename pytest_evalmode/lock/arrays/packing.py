"""Conversion of stored samples to and from dtypes that safetensors supports."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from pytest_evalmode.lock.arrays.stream import Stream
from pytest_evalmode.lock.causes.cause import Array


def pack_streams(streams: Mapping[str, Stream]) -> dict[str, Array]:
    """Return the arrays to store for streams: their samples, and the digests of all if not all are stored."""
    arrays: dict[str, Array] = {}
    for name, stream in streams.items():
        values, indices = stream.stored()
        if values.size:
            arrays[name] = _convert(values)
        if indices is not None and stream.digests:
            arrays[f"{name}#digests"] = np.asarray(stream.digests, np.uint64)
    return arrays


def _convert(values: Array) -> Array:
    if values.dtype.kind in "US":
        return np.frombuffer(json.dumps(values.astype(str).tolist()).encode(), np.uint8)
    if values.dtype.kind == "c":
        return np.stack([values.real, values.imag], -1)
    return values.view(np.int64) if values.dtype.kind == "M" else values


def restore_values(stored: Array, dtype: str) -> Array:
    """Convert samples of a sample file to the dtype that they had; bfloat16 and narrower floats stay float32.

    `dtype` is that in the lock entry: of torch or NumPy, or `text`.
    """
    if dtype == "text" and stored.dtype == np.uint8:
        try:
            return np.asarray(json.loads(stored.tobytes()), dtype=str)
        except (ValueError, RecursionError):
            return stored
    if dtype.startswith("complex") and stored.ndim and stored.shape[-1] == 2:
        return np.asarray(stored[..., 0] + 1j * stored[..., 1])
    return stored.view(dtype) if dtype.startswith("datetime64") and stored.dtype == np.int64 else stored
