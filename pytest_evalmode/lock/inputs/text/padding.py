"""Changes of padding: the id, the side and the length."""

from __future__ import annotations

from collections import Counter

from pytest_evalmode.lock.inputs.diagnosis import Array, Step
from pytest_evalmode.lock.inputs.text.rows import Row


def find_padding_id(ids: Array) -> int | None:
    """Return the padding id: one that occurs only at the ends of rows, in runs of different lengths.

    Args:
        ids: Token ids: an integer array of shape (texts, tokens).
    """
    runs: dict[int, list[int]] = {}
    for row in ids.tolist():
        for end in (row, row[::-1]):
            length = next((i for i, each in enumerate(end) if each != end[0]), len(end))
            runs.setdefault(end[0], []).append(length)
    counts = Counter(ids.ravel().tolist())
    candidates = [
        id_
        for id_, lengths in runs.items()
        if max(lengths) > 1 and sum(lengths) >= counts[id_] and set(lengths) != {ids.shape[1]}
    ]
    return max(candidates, key=lambda id_: counts[id_], default=None)


def share_padding_id(a: int | None, b: int | None) -> tuple[int | None, int | None]:
    """Return the locked and the current padding id; if only one is known, return it for both."""
    return a if a is not None else b, b if b is not None else a


def strip_padding(ids: Array, padding_id: int | None) -> list[Row]:
    """Return the rows of token ids, an integer array of shape (texts, tokens), without padding at either end."""
    return [_strip(row, padding_id) for row in ids.tolist()]


def _strip(row: list[int], padding_id: int | None) -> Row:
    start, end = 0, len(row)
    while end > start and row[end - 1] == padding_id:
        end -= 1
    while start < end and row[start] == padding_id:
        start += 1
    return tuple(row[start:end])


def find_padding_changes(
    was: Array, now: Array, padding_ids: tuple[int | None, int | None], changed: bool
) -> list[Step] | None:
    """Return a step if the padding id, side or length changed, else no step; None if rows are padded on both sides.

    Args:
        was: The locked token ids or mask: an integer array of shape (texts, tokens).
        now: The current token ids or mask, likewise.
        padding_ids: The locked and the current padding id, as far as known.
        changed: Whether the texts changed too; a different length is then not reported.
    """
    a, b = padding_ids
    old, new = _side(was, a), _side(now, b)
    if "both" in (old, new):
        return None
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


def _side(ids: Array, padding_id: int | None) -> str:
    if padding_id is None:
        return ""
    left, right = ((ids[:, i] == padding_id).any() for i in (0, -1))
    return "both" if left and right else "left" if left else "right" if right else ""
