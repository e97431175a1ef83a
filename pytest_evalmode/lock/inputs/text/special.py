"""Special tokens: at the ends of rows, or in place of others throughout."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row
from pytest_evalmode.lock.inputs.text.vocabulary import MOST_REPLACED, find_id_mapping

_SPECIAL = 3  # special tokens at an end are no more than these
_ENDS = sorted(product(range(_SPECIAL + 1), repeat=4), key=lambda ends: (sum(ends), max(ends)))


def try_special_tokens(
    old: list[Row], new: list[Row]
) -> Iterator[tuple[list[Step], list[Row], list[Row], tuple[int, int]]]:
    """Both without the same few tokens at each row's ends, fewest first; and the step, if those differ."""
    for i, j, k, m in _ENDS:
        ends, others = _end(old, i, k), _end(new, j, m)
        if ends is None or others is None:
            continue
        (start, stop), (begin, finish) = ends, others
        a = [row[i : len(row) - k] for row in old]
        b = [row[j : len(row) - m] for row in new]
        if (start, stop) == (begin, finish):
            yield [], a, b, (i, k)
        elif (not start or not begin or start[0] != begin[0]) and (not stop or not finish or stop[-1] != finish[-1]):
            # Nothing that both share is told, and one side alone may have changed.
            yield [_ends_step((start, stop), (begin, finish))], a, b, (i, k)
        elif (start == begin) != (stop == finish):
            yield [_ends_step((start, stop), (begin, finish))], a, b, (i, k)


def _end(rows: list[Row], head: int, tail: int) -> tuple[Row, Row] | None:
    """The tokens at both ends, if they are the same in all rows."""
    if min(map(len, rows)) < head + tail:
        return None
    found = {(row[:head], row[len(row) - tail :]) for row in rows}
    return found.pop() if len(found) == 1 else None


def _ends_step(old: tuple[Row, Row], new: tuple[Row, Row]) -> Step:
    words = []
    for a, b, where in zip(old, new, ("begun", "ended"), strict=True):
        if a != b:
            if not a or not b:
                words.append(f"{where} with {_ids(b)} more" if b else f"not {where} with {_ids(a)}")
            else:
                words.append(f"{where} with {_ids(b)}, not {_ids(a)}")
    return Step("special tokens", " and ".join(words), {"special tokens": (old, new)})


def _ids(row: Row) -> str:
    return f"id {row[0]}" if len(row) == 1 else f"ids {row}"


def find_prompt_tokens(old: list[Row], new: list[Row]) -> Step | None:
    """The same few tokens before, or after, every text: a prompt."""
    for longer, shorter, words in (
        (new, old, "given with {} more tokens {}"),
        (old, new, "given without {} tokens {}"),
    ):
        counts = {len(a) - len(b) for a, b in zip(longer, shorter, strict=True)}
        if len(counts) != 1 or (n := counts.pop()) <= 0:
            continue
        pairs = list(zip(longer, shorter, strict=True))
        for where, cut, rest in (
            ("at the start", {a[:n] for a, _ in pairs}, all(a[n:] == b for a, b in pairs)),
            ("at the end", {a[-n:] for a, _ in pairs}, all(a[:-n] == b for a, b in pairs)),
        ):
            if rest and len(cut) == 1:
                told_ = f"{words.format(n, where)} of every text: ids {cut.pop()}"
                return Step("prompt", told_, {"tokens": n})
    return None


def find_replaced_ids(old: list[Row], new: list[Row]) -> Step | None:
    """A few ids given as others, wherever they stand."""
    pairs = find_id_mapping(old, new)
    if (
        pairs is None
        or not 0 < len(pairs) <= MOST_REPLACED
        or len(pairs) * 2 > len({id_ for row in old for id_ in row})
    ):
        return None
    if any(sum(row.count(id_) for row in old) < 2 for id_ in pairs):
        return None  # once is no rule
    shown = ", ".join(f"id {b} for {a}" for a, b in pairs.items())
    return Step("special tokens", f"given with {shown} throughout", {"replaced": pairs})
