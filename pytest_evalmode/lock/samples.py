"""Arrays in safetensors: a format that holds numbers and can run nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.file import LockError

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

MOST_BYTES = 1 << 20
"""What the samples of one test may take, headers and all."""


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


def _contiguous(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.ascontiguousarray(array).reshape(array.shape)
