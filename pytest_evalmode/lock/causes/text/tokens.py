"""Causes of changed token ids, which act on rows without padding: special tokens, prompts, truncation, vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Diagnosis, Step, join_steps
from pytest_evalmode.lock.causes.order import match_samples, order_steps
from pytest_evalmode.lock.causes.search import Move, Moved, Proof, search
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
    return search(old, new, (_try_orders, _try_special_tokens), _PROVERS, _similarity, most=len(_ENDS))


def _similarity(old: Rows, new: Rows) -> float:
    return float(len(old) == len(new))


def _try_orders(old: Rows, new: Rows) -> Iterator[Move]:
    index = match_samples(old, new)
    if index is not None:
        yield Move(tuple(order_steps(len(old), index)), lambda rows: [rows[i] for i in index])


def _try_special_tokens(old: Rows, new: Rows) -> Iterator[Move]:
    """Remove the special tokens at both ends, in each possible number, the fewest first."""
    for i, j, k, m in _ENDS[1:]:
        old_ends, new_ends = _common_ends(old, i, k), _common_ends(new, j, m)
        if old_ends is None or new_ends is None:
            continue
        (start, end), (new_start, new_end) = old_ends, new_ends
        # Outermost tokens that both sides share are not part of the change; fewer tokens explain it then.
        differ = (not start or not new_start or start[0] != new_start[0]) and (
            not end or not new_end or end[-1] != new_end[-1]
        )
        steps = () if old_ends == new_ends else (_describe_ends(old_ends, new_ends),)
        if not steps or differ or (start == new_start) != (end == new_end):
            yield Move(steps, partial(_cut, head=i, tail=k), partial(_cut, head=j, tail=m))


def _cut(rows: Rows, head: int, tail: int) -> Rows:
    return [row[head : len(row) - tail] for row in rows]


def _common_ends(rows: Rows, head: int, tail: int) -> tuple[Row, Row] | None:
    """Return the tokens at both ends if they are the same in all rows."""
    if min(map(len, rows)) < head + tail:
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
    return Step("special tokens", " and ".join(words), {"special tokens": (old, new)})


def _ids(row: Row) -> str:
    return f"id {row[0]}" if len(row) == 1 else f"ids {row}"


def _find_equal(moved: Moved) -> Step | None:
    return Step("", "") if moved.was == moved.now else None


def _find_replaced(moved: Moved) -> Step | None:
    """Find a few ids that were replaced by others everywhere."""
    old, pairs = moved.was, _id_mapping(moved.was, moved.now)
    if not pairs or len(pairs) > _MAX_REPLACED or len(pairs) * 2 > len({id_ for row in old for id_ in row}):
        return None
    if any(sum(row.count(id_) for row in old) < 2 for id_ in pairs):
        return None  # a single occurrence does not show that an id is replaced everywhere
    shown = ", ".join(f"id {b} instead of {a}" for a, b in pairs.items())
    return Step("special tokens", f"given with {shown} everywhere", {"replaced": pairs})


def _find_prompt(moved: Moved) -> Step | None:
    found = find_affix(moved.was, moved.now)
    if found is None:
        return None
    affix, is_new, is_start = found
    words = f"given {'with' if is_new else 'without'} {len(affix)} {'more ' * is_new}tokens"
    words += f" at the {'start' if is_start else 'end'} of every text: ids {affix}"
    return Step("prompt", words, {"tokens": len(affix)})


def find_affix(old: list[Any], new: list[Any]) -> tuple[Any, bool, bool] | None:
    """Return what all current texts have before or after the locked ones, or the reverse.

    Returns:
        The affix, whether it is new, and whether it is at the start; None if there is none.
    """
    for longer, shorter in ((new, old), (old, new)):
        pairs = list(zip(longer, shorter, strict=True))
        n = len(pairs[0][0]) - len(pairs[0][1])
        if n > 0 and all(len(a) - len(b) == n for a, b in pairs):
            for is_start, affixes, rest in (
                (True, {a[:n] for a, _ in pairs}, all(a[n:] == b for a, b in pairs)),
                (False, {a[-n:] for a, _ in pairs}, all(a[:-n] == b for a, b in pairs)),
            ):
                if rest and len(affixes) == 1:
                    return affixes.pop(), longer is new, is_start
    return None


def _find_truncation(moved: Moved) -> Step | None:
    """Find rows that were cut at one end to the same length."""
    before, after = moved.origin
    removed = len(before[0]) - len(moved.was[0]) if not moved.steps or len(before) == len(moved.was) else 0
    if min(map(len, (*before, *after))) <= removed:
        return None
    for long, short, words, rows in (
        (moved.was, moved.now, "cut to {} tokens", after),
        (moved.now, moved.was, "not cut to {} tokens", before),
    ):
        cut = [i for i, (a, b) in enumerate(zip(long, short, strict=True)) if a != b]
        lengths = {len(short[i]) for i in cut}
        if len(lengths) != 1 or any(len(row) > max(lengths) for row in short):
            continue
        for side, is_start in (("at the end", True), ("at the start", False)):
            if all(
                len(short[i]) < len(long[i])
                and short[i] == (long[i][: len(short[i])] if is_start else long[i][-len(short[i]) :])
                for i in cut
            ):
                length = max(map(len, rows))
                return padding.describe_truncation(words.format(length), side, cut, len(long), length)
    return None


def _find_vocabulary(moved: Moved) -> Step | None:
    """Find a one-to-one mapping of ids, with ids that recur often enough to confirm it."""
    old, pairs = moved.was, _id_mapping(moved.was, moved.now)
    if moved.functions or pairs is None or len(pairs) <= _MAX_REPLACED:
        return None
    if 2 * sum(map(len, old)) < 3 * len({id_ for row in old for id_ in row}):
        return None
    shifts = {new - old for old, new in pairs.items()}
    how = f"all shifted by {shifts.pop()}" if len(shifts) == 1 else "mapped one to one"
    words = f"given in another vocabulary ({len(pairs)} ids differ, {how})"
    return Step("vocabulary", words, {"replaced": dict(list(pairs.items())[:32])})


def _id_mapping(old: Rows, new: Rows) -> dict[int, int] | None:
    """Return the ids that changed, each with its new id, if the mapping is one to one."""
    if [len(row) for row in old] != [len(row) for row in new]:
        return None
    pairs = {(a, b) for row, other in zip(old, new, strict=True) for a, b in zip(row, other, strict=True)}
    new_ids = dict(pairs)
    if len(new_ids) != len(pairs) or len(set(new_ids.values())) != len(new_ids):
        return None
    return {a: b for a, b in sorted(new_ids.items()) if a != b}


def _find_unknown(moved: Moved) -> Step | None:
    """Find stretches of ids that all became one id, or the reverse: the id of the unknown token."""
    for a, b, words in (
        (moved.was, moved.now, "unknown (id {}) that were known before"),
        (moved.now, moved.was, "known that were unknown (id {}) before"),
    ):
        if moved.functions:
            return None
        changes = [
            new[k:m]
            for old, new in zip(a, b, strict=True)
            for tag, _, _, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
            if tag != "equal"
        ]
        ids = {id_ for stretch in changes for id_ in stretch}
        if len(ids) == 1 and len(changes) > 1 and not any(ids & set(row) for row in a):
            unknown = f"given with {len(changes)} words {words.format(*ids)}"
            return Step("unknown tokens", unknown, {"unknown": (*ids,), "words": len(changes)})
    return None


def _prover(find: Callable[[Moved], Step | None]) -> Callable[[Moved], Iterator[Proof]]:
    def prove(moved: Moved) -> Iterator[Proof]:
        step = find(moved)
        if step is not None:
            yield Proof((step,) if step.words else ())

    return prove


_PROVERS = tuple(
    map(_prover, (_find_equal, _find_replaced, _find_prompt, _find_truncation, _find_vocabulary, _find_unknown))
)
