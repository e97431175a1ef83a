"""How an array differs that was to be the same, in words and to look at."""

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
    was: Entry,
    now: Stream,
    kept: Array | None,
    digests: Array | None,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> tuple[str, Mapping[str, object]]:
    """How an array differs, in words, and in details."""
    new = now.entry()
    found = _diagnosis(was, now, kept, digests, rtol=rtol, atol=atol)
    if found is not None:
        recast = was["dtype"] != new["dtype"] and "dtype" not in found.kinds
        and_recast = f"; given as {new['dtype']}, not {was['dtype']}" if recast else ""
        return f"{found.headline}{and_recast}", {"kinds": list(found.kinds), **found.details}
    for name in ("dtype", "shape", "samples"):
        if was[name] != new[name]:
            return f"values differ: {name} {new[name]}, not {was[name]}", {}
    others = [i for i, (a, b) in enumerate(zip(_list(digests), now.digests, strict=False)) if a != b]
    if others:
        shown = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        return f"{len(others)} of {now.count} samples differ ({shown})", {"samples": others[:32]}
    return f"values differ after the first {max(len(_list(digests)), len(now.stored_values()))} samples", {}


def draw_difference(was: Entry, now: Stream, kept: Array | None) -> dict[str, Any] | None:
    """What there is to look at of an array that differs."""
    if kept is None or "text" in (was["dtype"], now.dtype):
        return None
    old, live = restore_values(kept, was["dtype"]), now.stored_values()
    return None if text.is_tokens(old, live) else draw_pictures(old, live)


def _diagnosis(
    was: Entry, now: Stream, kept: Array | None, digests: Array | None, *, rtol: float, atol: float
) -> Diagnosis | None:
    live = now.stored_values()
    if kept is None or not live.size:
        return None
    old = restore_values(kept, was["dtype"])
    complete = digests is None and now.is_complete and len(old) == was["samples"]
    if not complete:
        cut = old.shape[1:] != now.shape or live.shape[1:] != now.shape
        if not cut and digests is not None and len(digests) == was["samples"] and len(now.digests) == now.count:
            # Labels of a few classes come in another order as easily as they are given other numbers.
            found = compare_classes(_list(digests), now.digests, old, live) if now.shape == () else None
            found = found or compare_order(_list(digests), now.digests)
            if found is not None:
                return found
        if not cut:
            both = min(len(old), len(live))
            old, live = old[:both], live[:both]
    if now.is_scalar and not complete:
        return None
    return diagnose(old, live, rtol=rtol, atol=atol)


def _list(digests: Array | None) -> list[int]:
    return [] if digests is None else [int(digest) for digest in digests]
