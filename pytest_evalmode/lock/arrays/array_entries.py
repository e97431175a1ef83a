"""What is locked of the arrays of inputs or outputs, as the lock file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_evalmode.lock.lock_file import Entry, LockError

_FIELDS = {"dtype": str, "shape": str, "samples": int, "digest": str, "room": int}


def parse_array_entries(entry: Entry, where: str) -> dict[str, Entry]:
    """The arrays of a locked entry.  Raises LockError, which begins with `where`, where they are none."""
    found = entry.get("arrays")
    right = isinstance(found, dict) and all(
        isinstance(array, dict) and all(type(array.get(name)) is kind for name, kind in _FIELDS.items())
        for array in found.values()
    )
    if not isinstance(found, dict) or not right:
        raise LockError(f"{where} describes no arrays; delete it and run pytest --evalmode-update-lock")
    return found


def max_bytes_of(arrays_: Mapping[str, Any]) -> dict[str, int]:
    """What was kept of each array, as it is locked."""
    return {name: entry["room"] for name, entry in arrays_.items()}


def matches(was: Entry, now: Entry) -> bool:
    """Whether an array is what was locked, bit by bit."""
    return all(was[name] == now[name] for name in ("dtype", "shape", "samples", "digest"))
