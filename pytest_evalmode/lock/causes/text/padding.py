"""Causes of changed padding and attention masks."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Diagnosis, Step, join_steps


def find_padding_id(ids: Array) -> int | None:
    """Return the padding id of token ids: one that occurs only at the ends of rows, in runs of different lengths."""
    runs: dict[int, list[int]] = {}
    for row in ids.tolist():
        for end in (row, row[::-1]):
            length = next((i for i, each in enumerate(end) if each != end[0]), len(end))
            runs.setdefault(end[0], []).append(length)
    counts = Counter(ids.ravel().tolist())
    longer = {id_: lengths for id_, lengths in runs.items() if max(lengths) > 1 and set(lengths) != {ids.shape[1]}}
    candidates = [id_ for id_, lengths in longer.items() if sum(lengths) >= counts[id_]]
    return max(candidates, key=counts.__getitem__, default=None)


def strip_padding(ids: Array, padding_id: int | None) -> list[tuple[int, ...]]:
    """Return the rows of token ids without padding at either end."""
    places = [np.flatnonzero(row != padding_id) for row in ids]
    return [tuple(row[at[0] : at[-1] + 1].tolist()) if at.size else () for row, at in zip(ids, places, strict=True)]


def describe_padding(was: Array, now: Array, ids: tuple[int | None, int | None], *, changed: bool) -> list[Step] | None:
    """Return a step if the padding id, side or length changed, else no step; None if rows are padded on both sides.

    With `changed`, the texts changed too; another length is then not reported.
    """
    a, b = ids
    old, new = _side(was, a), _side(now, b)
    if "both" in (old, new):
        return None
    words: list[str] = []
    if a is not None and b is not None and a != b:
        words.append(f"padded with id {b}, not {a}")
    if old and new and old != new:
        words.append(f"padded on the {new}, not on the {old}")
    if was.shape[1] != now.shape[1] and not changed:
        words.append(f"padded to {now.shape[1]} tokens, not {was.shape[1]}")
    return [Step("padding", " and ".join(words))] if words else []


def _side(ids: Array, padding_id: int | None) -> str:
    left, right = (padding_id is not None and bool((ids[:, i] == padding_id).any()) for i in (0, -1))
    return "both" if left and right else "left" if left else "right" if right else ""


def explain_masks(was: Array, now: Array) -> Diagnosis | None:
    """Return the diagnosis of attention masks (1 for text, 0 for padding); None without a known cause.

    Texts of other lengths are explained by the token ids beside a mask.
    """
    if was.shape == now.shape and np.array_equal(was, 1 - now):
        return join_steps("tokens", [Step("inverted", "marked the opposite way (padding instead of text)")])
    if _is_inside(now).any() or _is_inside(was).any():
        return _explain_holes(was, now)
    padded = describe_padding(was, now, (0, 0), changed=False)
    return join_steps("tokens", padded) if padded and np.array_equal(was.sum(1), now.sum(1)) else None


def _is_inside(mask: Array) -> Array:
    """Return where a 0 has a 1 on both sides."""
    before, after = np.maximum.accumulate(mask, 1), np.maximum.accumulate(mask[:, ::-1], 1)[:, ::-1]
    return np.asarray((mask == 0) & (before == 1) & (after == 1))


def _explain_holes(was: Array, now: Array) -> Diagnosis | None:
    """Recognize tokens inside texts that are masked now; other texts must be as before, or masked in other places."""
    if was.shape != now.shape or np.any(now > was):
        return None
    inside = np.argwhere(_is_inside(now) & (was > now)).tolist()
    if not inside:
        return None
    masked = int((was > now).sum())
    more = f", {masked - len(inside)} at an end" if masked > len(inside) else ""
    first = f"first: text {inside[0][0]}, token {inside[0][1]}"
    words = f"masked in {masked} more place{'s' * (masked > 1)}: {len(inside)} inside a text ({first}){more}"
    return join_steps("tokens", [Step("hole", words)])
