"""Changes of special tokens: at the ends of texts, or replaced everywhere; and prompts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row
from pytest_evalmode.lock.inputs.text.vocabulary import MOST_REPLACED, find_id_mapping

_MAX_SPECIAL = 3  # special tokens at one end
_ENDS = sorted(product(range(_MAX_SPECIAL + 1), repeat=4), key=lambda ends: (sum(ends), max(ends)))


def try_special_tokens(
    old: list[Row], new: list[Row]
) -> Iterator[tuple[list[Step], list[Row], list[Row], tuple[int, int]]]:
    """Yield the rows without special tokens at their ends, for each possible number of them, the fewest first.

    Yields:
        A step if the special tokens differ, the locked rows, the current rows, and how many tokens were removed from
        the start and the end of the locked rows.
    """
    for i, j, k, m in _ENDS:
        old_ends, new_ends = _common_ends(old, i, k), _common_ends(new, j, m)
        if old_ends is None or new_ends is None:
            continue
        (start, end), (new_start, new_end) = old_ends, new_ends
        a = [row[i : len(row) - k] for row in old]
        b = [row[j : len(row) - m] for row in new]
        if old_ends == new_ends:
            yield [], a, b, (i, k)
        elif (not start or not new_start or start[0] != new_start[0]) and (
            not end or not new_end or end[-1] != new_end[-1]
        ):
            # Outermost tokens that both sides share are not part of the change; fewer tokens explain it then.
            yield [_ends_step(old_ends, new_ends)], a, b, (i, k)
        elif (start == new_start) != (end == new_end):
            yield [_ends_step(old_ends, new_ends)], a, b, (i, k)


def _common_ends(rows: list[Row], head: int, tail: int) -> tuple[Row, Row] | None:
    """Return the tokens at both ends if they are the same in all rows."""
    if min(map(len, rows)) < head + tail:
        return None
    distinct = {(row[:head], row[len(row) - tail :]) for row in rows}
    return distinct.pop() if len(distinct) == 1 else None


def _ends_step(old: tuple[Row, Row], new: tuple[Row, Row]) -> Step:
    words = []
    for a, b, where in zip(old, new, ("start", "end"), strict=True):
        if a and b and a != b:
            words.append(f"given with {_ids(b)} instead of {_ids(a)} at the {where}")
        elif a != b:
            words.append(f"given {f'with {_ids(b)} added' if b else f'without {_ids(a)}'} at the {where}")
    return Step("special tokens", " and ".join(words), {"special tokens": (old, new)})


def _ids(row: Row) -> str:
    return f"id {row[0]}" if len(row) == 1 else f"ids {row}"


def find_prompt_tokens(old: list[Row], new: list[Row]) -> Step | None:
    """Find a prompt: the same few tokens before, or after, every text."""
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
                prompt = f"{words.format(n, where)} of every text: ids {cut.pop()}"
                return Step("prompt", prompt, {"tokens": n})
    return None


def find_replaced_ids(old: list[Row], new: list[Row]) -> Step | None:
    """Find a few ids that were replaced by others everywhere."""
    pairs = find_id_mapping(old, new)
    if (
        pairs is None
        or not 0 < len(pairs) <= MOST_REPLACED
        or len(pairs) * 2 > len({id_ for row in old for id_ in row})
    ):
        return None
    if any(sum(row.count(id_) for row in old) < 2 for id_ in pairs):
        return None  # a single occurrence does not show that an id is replaced everywhere
    shown = ", ".join(f"id {b} instead of {a}" for a, b in pairs.items())
    return Step("special tokens", f"given with {shown} everywhere", {"replaced": pairs})
