"""The samples of a test's lock, stored as safetensors: a format of numbers that cannot run code."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.lock_file import HOW_TO_UPDATE, LockError, LockFile, StoredLock

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = Mapping[str, Array]

MAX_BYTES = 1 << 20
"""The maximum size of one test's samples, headers included."""


class SampleStore:
    """The samples of one test: those in its sample file, and new ones for the next.

    A sample is identified by the kind and name of its entry, and its path in the entry. Methods raise LockError if the
    file cannot be used.
    """

    def __init__(self, file: LockFile, test: str) -> None:
        self._file = file
        self._test = test
        self._entries = file.tests.get(test, StoredLock()).entries
        self._stored: Arrays | None = None
        self._new: dict[str, Array] = {}

    def load(self, kind: str, name: str) -> dict[str, Array]:
        """Return the stored samples of an entry, by path."""
        where = f"{self._file.path} ({self._test})"
        if self._stored is None:
            data = self._file.sample_bytes(self._test) if self._entries else None
            self._stored = unpack(data, f"{where}: its samples")
        samples = {}
        for key, values in self._stored.items():
            try:
                owner_kind, owner_name, path = json.loads(key)
            except (ValueError, TypeError, RecursionError):
                raise LockError(f"{where}: invalid sample name {key!r:.80}; {HOW_TO_UPDATE}") from None
            if (owner_kind, owner_name) == (kind, name):
                samples[path] = values
        return samples

    def add(self, kind: str, name: str, arrays: Arrays) -> int:
        """Add new samples of an entry, and return by how many bytes the store grew."""
        keyed = _keyed(kind, name, arrays)
        added = sum(values.nbytes for key, values in keyed.items() if key not in self._new)
        self._new |= keyed
        return added

    def to_bytes(self, used: Collection[tuple[str, str]]) -> bytes | None:
        """Return the new sample file, which keeps the stored samples of entries that were not `used`."""
        old: dict[str, Array] = {}
        for kind, entries in self._entries.items():
            for name in entries:
                if (kind, name) not in used:
                    old |= _keyed(kind, name, self.load(kind, name))
        return pack({**old, **self._new})


def _keyed(kind: str, name: str, arrays: Arrays) -> dict[str, Array]:
    return {json.dumps([kind, name, path]): values for path, values in arrays.items()}


def pack(arrays: Arrays) -> bytes | None:
    """Return arrays as the contents of a safetensors file; None without arrays."""
    if not arrays:
        return None
    from safetensors.numpy import save

    return save({name: _contiguous(array) for name, array in sorted(arrays.items())})


def unpack(data: bytes | None, where: str) -> Arrays:
    """Return the arrays of a safetensors file; raise LockError, naming the file by `where`, if it is invalid.

    A header cannot make this allocate more memory than the file has: safetensors checks shapes against its size.
    """
    if data is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "delete them and run pytest --evalmode-update-lock"
        raise LockError(f"{where} cannot be read: {error}; {remedy}") from None


def _contiguous(array: Array) -> Array:
    import numpy as np

    return np.ascontiguousarray(array).reshape(array.shape)
