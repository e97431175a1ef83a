"""Causes of changed token ids, which act on rows without padding: special tokens, other ids, prompts, truncation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import product
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Diagnosis, Step, join_steps
from pytest_evalmode.lock.causes.order import match_samples, order_steps
from pytest_evalmode.lock.causes.text import padding

Row = tuple[int, ...]  # the token ids of one text
Rows = list[Row]

_MAX_SPECIAL = 3  # special tokens at one end
_ENDS = sorted(product(range(_MAX_SPECIAL + 1), repeat=4), key=lambda ends: (sum(ends), max(ends)))
_MAX_REPLACED = 3  # ids that are replaced everywhere; more are another vocabulary


def is_tokens(was: Array, now: Array) -> bool:
    """Return whether both arrays look like token ids: non-empty, of shape (texts, tokens), integers but not uint8."""
    return all(
        each.dtype.kind in "iu" and each.dtype != np.uint8 and each.ndim == 2 and each.size for each in (was, now)
    )


def explain_tokens(was: Array, now: Array) -> Diagnosis | None:
    """Return the diagnosis of token ids or attention masks, of shape (texts, tokens); None without a known cause."""
    if all(np.isin(each, (0, 1)).all() for each in (was, now)):
        return padding.explain_masks(was, now)
    ids = padding.find_padding_id(was), padding.find_padding_id(now)
    shared = (ids[0] if ids[0] is not None else ids[1], ids[1] if ids[1] is not None else ids[0])
    old, new = (padding.strip_padding(each, id_) for each, id_ in zip((was, now), shared, strict=True))
    steps = [] if old == new else _explain_rows(old, new)
    padded = None if steps is None else padding.describe_padding(was, now, ids, changed=bool(steps))
    if steps is None or padded is None or not (steps or padded):
        return None
    return join_steps("tokens", [*steps, *padded])


def read_ragged(was: Array, now: Array) -> tuple[Rows, Rows] | None:
    """Return both arrays as rows of token ids, if one holds ids of unequal lengths as texts, such as "1 11 12"."""
    sides: list[Rows] = []
    for each in (was, now):
        if each.dtype.kind == "U" and each.ndim == 1:
            if not all(re.fullmatch(r"(-?\d+( -?\d+)*)?", text) for text in each.tolist()):
                return None
            sides.append([tuple(map(int, text.split())) for text in each.tolist()])
        elif each.dtype.kind in "iu" and each.ndim == 2:
            sides.append([tuple(row) for row in each.tolist()])
    return (sides[0], sides[1]) if len(sides) == 2 and "U" in (was.dtype.kind, now.dtype.kind) else None


def explain_ragged(old: Rows, new: Rows) -> Diagnosis:
    """Return the diagnosis of rows of token ids of unequal lengths, which are not padded."""
    steps = _explain_rows(old, new)
    if steps:
        return join_steps("tokens", steps)
    differ = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    count = f"{len(new)} texts, not {len(old)}" if len(old) != len(new) else f"{len(differ)} of {len(old)} texts"
    words = f"tokens differ, cause not recognized: {count}, first: text {differ[0] if differ else 0}"
    return Diagnosis(words, (), {"samples": tuple(differ[:32])})


def _explain_rows(old: Rows, new: Rows) -> list[Step] | None:
    """Return the steps between rows: another order, or special tokens at the ends and one change between these."""
    index = match_samples(old, new)
    if index is not None:
        return order_steps(len(old), index)
    if len(old) != len(new):
        return None
    between = sorted(_without_ends(old, new), key=lambda each: len(each[0]))
    for special, a, b, _ in between:
        if a == b:
            return special
    for special, a, b, counts in between:
        step = _find_replaced(a, b) or _find_prompt(a, b) or _find_truncation(a, b, counts)
        if step is not None:
            return [*special, step]
    unknown = _find_unknown(old, new)
    return None if unknown is None else [unknown]


def _without_ends(old: Rows, new: Rows) -> Iterator[tuple[list[Step], Rows, Rows, tuple[int, int]]]:
    """Yield the steps that explain the special tokens, the rows without these, and how many these were and are.

    Each possible number of special tokens is tried, the fewest first.
    """
    for head, new_head, tail, new_tail in _ENDS:
        ends, new_ends = _common_ends(old, head, tail), _common_ends(new, new_head, new_tail)
        if ends is not None and new_ends is not None:
            rows = [row[head : len(row) - tail] for row in old]
            new_rows = [row[new_head : len(row) - new_tail] for row in new]
            steps = [_describe_ends(ends, new_ends)] if ends != new_ends else []
            yield steps, rows, new_rows, (head + tail, new_head + new_tail)


def _common_ends(rows: Rows, head: int, tail: int) -> tuple[Row, Row] | None:
    """Return the tokens at both ends if they are the same in all rows."""
    if min(map(len, rows), default=0) < head + tail:
        return None
    distinct = {(row[:head], row[len(row) - tail :]) for row in rows}
    return distinct.pop() if len(distinct) == 1 else None


def _describe_ends(old: tuple[Row, Row], new: tuple[Row, Row]) -> Step:
    words = []
    for a, b, where in zip(old, new, ("start", "end"), strict=True):
        if a and b and a != b:
            words.append(f"given with {_ids(b)} instead of {_ids(a)} at the {where}")
        elif a != b:
            words.append(f"given {f'with {_ids(b)} added' if b else f'without {_ids(a)}'} at the {where}")
    return Step("special tokens", " and ".join(words))


def _ids(row: Row) -> str:
    return f"id {row[0]}" if len(row) == 1 else f"ids {row}"


def _find_replaced(old: Rows, new: Rows) -> Step | None:
    """Find a few ids that were replaced by others everywhere; an id that occurs once does not show that."""
    if list(map(len, old)) != list(map(len, new)):
        return None
    ids = [id_ for row in old for id_ in row]
    pairs = set(zip(ids, (id_ for row in new for id_ in row), strict=True))
    mapping = {a: b for a, b in sorted(pairs) if a != b}
    is_one_to_one = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    is_confirmed = all(ids.count(id_) > 1 for id_ in list(mapping)[: _MAX_REPLACED + 1])
    if not is_one_to_one or not is_confirmed or len(mapping) > min(_MAX_REPLACED, len(set(ids)) // 2):
        return None
    return Step(
        "special tokens", f"given with {', '.join(f'id {b} instead of {a}' for a, b in mapping.items())} everywhere"
    )


def _find_prompt(old: Rows, new: Rows) -> Step | None:
    found = find_affix(old, new)
    if found is None:
        return None
    affix, is_new, is_start = found
    words = f"given {'with' if is_new else 'without'} {len(affix)} {'more ' * is_new}tokens"
    return Step("prompt", f"{words} at the {'start' if is_start else 'end'} of every text: ids {affix}")


def find_affix(old: list[Any], new: list[Any]) -> tuple[Any, bool, bool] | None:
    """Return what all current texts have before or after the locked ones, or the reverse; None if there is nothing.

    With it come whether it is new, and whether it is at the start.
    """
    for longer, shorter in ((new, old), (old, new)):
        pairs = list(zip(longer, shorter, strict=True))
        n = len(longer[0]) - len(shorter[0])
        if n > 0:
            start, end = longer[0][:n], longer[0][-n:]
            if all(a == start + b for a, b in pairs):
                return start, longer is new, True
            if all(a == b + end for a, b in pairs):
                return end, longer is new, False
    return None


def _find_truncation(old: Rows, new: Rows, special: tuple[int, int]) -> Step | None:
    """Find rows that were cut at one end to the same length, which includes the special tokens."""
    for long, short, words, more in ((old, new, "cut", special[1]), (new, old, "not cut", special[0])):
        cut = [i for i, (a, b) in enumerate(zip(long, short, strict=True)) if a != b]
        n = max(map(len, short))
        if n and all(len(long[i]) > len(short[i]) == n for i in cut):
            for side, part in (("at the end", slice(n)), ("at the start", slice(-n, None))):
                if all(short[i] == long[i][part] for i in cut):
                    return Step("truncation", f"{words} to {n + more} tokens {side} ({len(cut)} of {len(long)} texts)")
    return None


def _find_unknown(old: Rows, new: Rows) -> Step | None:
    """Find stretches of ids that all became one id that is new: that of the unknown token."""
    changes = [
        (a[i:j], b[k:m])
        for a, b in zip(old, new, strict=True)
        for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
    ids = {id_ for _, stretch in changes for id_ in stretch}
    if len(ids) != 1 or len(changes) < 2 or any(ids & set(row) for row in old):
        return None
    if not all(before and after for before, after in changes):  # tokens were inserted or deleted
        return None
    return Step("unknown tokens", f"given with {len(changes)} words unknown (id {ids.pop()}) that were known before")
