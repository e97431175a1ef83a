"""Descriptions of how an input array differs from the locked one: in words, in details for reports, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.arrays.packing import restore_values
from pytest_evalmode.lock.arrays.pictures import draw_pictures
from pytest_evalmode.lock.arrays.stream import Stream
from pytest_evalmode.lock.inputs import Diagnosis, compare_classes, compare_order, diagnose, text
from pytest_evalmode.lock.lock_file import Entry

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def describe_difference(
    locked: Entry,
    stream: Stream,
    stored: Array | None,
    digests: Array | None,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> tuple[str, Mapping[str, object]]:
    """Describe how an array differs from the locked one.

    Args:
        locked: The locked array.
        stream: The array of this run.
        stored: The stored values, of shape (samples, ...); None if there are none.
        digests: The stored digests per sample, uint64 of shape (samples,); None if all values are stored.
        rtol: The relative tolerance.
        atol: The absolute tolerance.

    Returns:
        The description, and details for the reports.
    """
    entry = stream.entry()
    diagnosis = _diagnose(locked, stream, stored, digests, rtol=rtol, atol=atol)
    if diagnosis is not None:
        has_new_dtype = locked["dtype"] != entry["dtype"] and "dtype" not in diagnosis.kinds
        new_dtype = f"; dtype {locked['dtype']} -> {entry['dtype']}" if has_new_dtype else ""
        return f"{diagnosis.headline}{new_dtype}", {"kinds": list(diagnosis.kinds), **diagnosis.details}
    for name in ("dtype", "shape", "samples"):
        if locked[name] != entry[name]:
            return f"values differ: {name} {locked[name]} -> {entry[name]}", {}
    differing = [i for i, (a, b) in enumerate(zip(_to_list(digests), stream.digests, strict=False)) if a != b]
    if differing:
        shown = ", ".join(map(str, differing[:5])) + (", ..." if len(differing) > 5 else "")
        return f"{len(differing)} of {stream.count} samples differ ({shown})", {"samples": differing[:32]}
    return f"values differ after the first {max(len(_to_list(digests)), len(stream.stored_values()))} samples", {}


def draw_difference(locked: Entry, stream: Stream, stored: Array | None) -> dict[str, Any] | None:
    """Return pictures of an array that differs; None for text, tokens and arrays without stored values."""
    if stored is None or "text" in (locked["dtype"], stream.dtype):
        return None
    old, new = restore_values(stored, locked["dtype"]), stream.stored_values()
    return None if text.is_tokens(old, new) else draw_pictures(old, new)


def _diagnose(
    locked: Entry, stream: Stream, stored: Array | None, digests: Array | None, *, rtol: float, atol: float
) -> Diagnosis | None:
    new = stream.stored_values()
    if stored is None or not new.size:
        return None
    old = restore_values(stored, locked["dtype"])
    is_complete = digests is None and stream.is_complete and len(old) == locked["samples"]
    if not is_complete:
        is_cropped = old.shape[1:] != stream.shape or new.shape[1:] != stream.shape
        has_all_digests = digests is not None and len(digests) == locked["samples"]
        if not is_cropped and has_all_digests and len(stream.digests) == stream.count:
            # Labels of a few classes: a new order and new class numbers look alike, so compare the classes first.
            diagnosis = compare_classes(_to_list(digests), stream.digests, old, new) if stream.shape == () else None
            diagnosis = diagnosis or compare_order(_to_list(digests), stream.digests)
            if diagnosis is not None:
                return diagnosis
        if not is_cropped:
            both = min(len(old), len(new))
            old, new = old[:both], new[:both]
    if stream.is_scalar and not is_complete:
        return None
    return diagnose(old, new, rtol=rtol, atol=atol)


def _to_list(digests: Array | None) -> list[int]:
    return [] if digests is None else [int(digest) for digest in digests]
