"""The samples of a lock file, stored as safetensors: a format of numbers that cannot run code."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.lock_file import LockError

if TYPE_CHECKING:
    import numpy as np

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
MAX_BYTES = 1 << 20
"""The maximum size of one test's samples, headers included."""


def key_of(kind: str, name: str, path: str) -> str:
    """Return the name of an array in the sample file of a test: that of its entry, and its path in the entry."""
    return json.dumps([kind, name, path])


def merge_samples(stored: bytes | None, new: bytes | None, kept: Collection[tuple[str, str]]) -> bytes | None:
    """Return a sample file with the new samples, and the stored ones of the entries that are `kept`."""
    starts = tuple(key_of(*entry, "").removesuffix('""]') for entry in kept)
    try:
        old = {key: values for key, values in unpack(stored).items() if key.startswith(starts)} if kept else {}
    except LockError:
        old = {}
    return pack({**old, **unpack(new)}) if old else new


def pack(arrays: Arrays) -> bytes | None:
    """Return arrays as the contents of a safetensors file; None without arrays."""
    if not arrays:
        return None
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in sorted(arrays.items())})


def unpack(data: bytes | None) -> Arrays:
    """Return the arrays of a safetensors file; raise LockError if it is invalid.

    A header cannot make this allocate more memory than the file has: safetensors checks shapes against its size.
    """
    if data is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LockError(f"the samples cannot be read: {error}; run pytest --evalmode-update-lock") from None
