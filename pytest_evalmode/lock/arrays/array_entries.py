"""The lock entries of the arrays of inputs or outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_evalmode.lock.lock_file import Entry, LockError

_FIELDS = {"dtype": str, "shape": str, "samples": int, "digest": str, "room": int}


def parse_array_entries(entry: Entry, where: str) -> dict[str, Entry]:
    """Return the arrays of an entry, by path; raise LockError, naming the entry by `where`, if one is invalid."""
    arrays = entry.get("arrays")
    is_valid = isinstance(arrays, dict) and all(
        isinstance(array, dict) and all(type(array.get(name)) is kind for name, kind in _FIELDS.items())
        for array in arrays.values()
    )
    if not isinstance(arrays, dict) or not is_valid:
        raise LockError(f"{where} has no valid arrays; delete it and run pytest --evalmode-update-lock")
    return arrays


def max_bytes_of(locked: Mapping[str, Any]) -> dict[str, int]:
    """Return how many bytes of each array could be stored when it was locked."""
    return {name: entry["room"] for name, entry in locked.items()}


def matches(locked: Entry, entry: Entry) -> bool:
    """Return whether two entries have the same values, bit for bit."""
    return all(locked[name] == entry[name] for name in ("dtype", "shape", "samples", "digest"))
