"""What is kept of what a test locks: arrays in safetensors, a format that holds numbers and can run nothing."""

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
"""What the samples of one test may take, headers and all."""


class SampleStore:
    """The samples of one test: those that were kept, and those that are to be.

    Each has the kind and name of its entry, and a path in it.  Raises LockError if what was kept cannot be used.
    """

    def __init__(self, file: LockFile, test: str) -> None:
        self._file = file
        self._test = test
        self._entries = file.tests.get(test, StoredLock()).entries
        self._kept: Arrays | None = None
        self._new: dict[str, Array] = {}

    def load(self, kind: str, name: str) -> dict[str, Array]:
        """What was kept of an entry, by path."""
        if self._kept is None:
            where = f"{self._file.path} ({self._test}): its samples"
            self._kept = unpack(self._file.sample_bytes(self._test), where) if self._entries else {}
        found = {}
        for key, values in self._kept.items():
            try:
                owner, own, path = json.loads(key)
            except (ValueError, TypeError, RecursionError):
                raise LockError(
                    f"{self._file.path} ({self._test}): {key!r:.80} names no sample; {HOW_TO_UPDATE}"
                ) from None
            if (owner, own) == (kind, name):
                found[path] = values
        return found

    def add(self, kind: str, name: str, arrays: Arrays) -> int:
        """Keep these of an entry, and tell how many bytes they are, but for what was added before."""
        keyed = _keyed(kind, name, arrays)
        more = sum(values.nbytes for key, values in keyed.items() if key not in self._new)
        self._new |= keyed
        return more

    def to_bytes(self, used: Collection[tuple[str, str]]) -> bytes | None:
        """All that is to be kept, as the bytes of a file: of entries that were not `used`, what was."""
        old: dict[str, Array] = {}
        for kind, entries in self._entries.items():
            for name in entries:
                if (kind, name) not in used:
                    old |= _keyed(kind, name, self.load(kind, name))
        return pack({**old, **self._new})


def _keyed(kind: str, name: str, arrays: Arrays) -> dict[str, Array]:
    return {json.dumps([kind, name, path]): values for path, values in arrays.items()}


def pack(arrays: Arrays) -> bytes | None:
    """The arrays as the bytes of a file; None if there are none."""
    if not arrays:
        return None
    from safetensors.numpy import save

    return save({name: _contiguous(array) for name, array in sorted(arrays.items())})


def unpack(data: bytes | None, where: str) -> Arrays:
    """The arrays of a file.  Raises LockError, which begins with `where`, if it is none.

    Shapes take no memory on their word: safetensors holds them against the size of what is there.
    """
    if data is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LockError(f"{where} holds no samples: {error}; delete it and run pytest --evalmode-update-lock") from None


def _contiguous(array: Array) -> Array:
    import numpy as np

    return np.ascontiguousarray(array).reshape(array.shape)
