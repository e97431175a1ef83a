"""What fills rows up, and on which side."""

from __future__ import annotations

from collections import Counter

from pytest_evalmode.lock.inputs.diagnosis import Array, Step
from pytest_evalmode.lock.inputs.text.rows import Row


def find_padding_id(ids: Array) -> int | None:
    """The id that fills rows up: only ever at an end of a row, in runs of differing lengths."""
    runs: dict[int, list[int]] = {}
    for row in ids.tolist():
        for end in (row, row[::-1]):
            length = next((i for i, each in enumerate(end) if each != end[0]), len(end))
            runs.setdefault(end[0], []).append(length)
    counts = Counter(ids.ravel().tolist())
    fit = [
        id_
        for id_, lengths in runs.items()
        if max(lengths) > 1 and sum(lengths) >= counts[id_] and set(lengths) != {ids.shape[1]}
    ]
    return max(fit, key=lambda id_: counts[id_], default=None)


def share_padding_id(a: int | None, b: int | None) -> tuple[int | None, int | None]:
    """Where one is not padded at all, the other's filler may stand in it too."""
    return a if a is not None else b, b if b is not None else a


def strip_padding(ids: Array, filler: int | None) -> list[Row]:
    """The rows without what fills them up."""
    return [_stripped(row, filler) for row in ids.tolist()]


def _stripped(row: list[int], filler: int | None) -> Row:
    start, end = 0, len(row)
    while end > start and row[end - 1] == filler:
        end -= 1
    while start < end and row[start] == filler:
        start += 1
    return tuple(row[start:end])


def find_padding_changes(was: Array, now: Array, filler: tuple[int | None, int | None], changed: bool) -> list[Step]:
    a, b = filler
    old, new = _side(was, a), _side(now, b)
    words: list[str] = []
    details: dict[str, object] = {}
    if a is not None and b is not None and a != b:
        words.append(f"padded with id {b}, not {a}")
        details["filler"] = (a, b)
    if old and new and old != new:
        words.append(f"padded on the {new}, not on the {old}")
        details["side"] = (old, new)
    if was.shape[1] != now.shape[1] and not changed:
        words.append(f"padded to {now.shape[1]} tokens, not {was.shape[1]}")
        details["width"] = (was.shape[1], now.shape[1])
    return [Step("padding", " and ".join(words), details)] if words else []


def _side(ids: Array, filler: int | None) -> str:
    if filler is None:
        return ""
    left, right = ((ids[:, i] == filler).any() for i in (0, -1))
    return "left" if left and not right else "right" if right and not left else ""
