"""Changes of the vocabulary: the same text has other ids."""

from __future__ import annotations

from difflib import SequenceMatcher

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row

MOST_REPLACED = 3  # ids that are replaced everywhere; more are another vocabulary


def find_other_vocabulary(old: list[Row], new: list[Row]) -> Step | None:
    """Find a one-to-one mapping of ids, with ids that recur often enough to confirm it."""
    pairs = find_id_mapping(old, new)
    if (
        pairs is None
        or len(pairs) <= MOST_REPLACED
        or 2 * sum(map(len, old)) < 3 * len({id_ for row in old for id_ in row})
    ):
        return None
    shifts = {new - old for old, new in pairs.items()}
    how = f"all shifted by {shifts.pop()}" if len(shifts) == 1 else "mapped one to one"
    words = f"given in another vocabulary ({len(pairs)} ids differ, {how})"
    return Step("vocabulary", words, {"replaced": dict(list(pairs.items())[:32])})


def find_id_mapping(old: list[Row], new: list[Row]) -> dict[int, int] | None:
    """Return the ids that changed, each with its new id, if the mapping is one to one."""
    if [len(row) for row in old] != [len(row) for row in new]:
        return None
    pairs = {(a, b) for row, other in zip(old, new, strict=True) for a, b in zip(row, other, strict=True)}
    new_ids = dict(pairs)
    if len(new_ids) != len(pairs) or len(set(new_ids.values())) != len(new_ids):
        return None
    return {a: b for a, b in sorted(new_ids.items()) if a != b}


def find_unknown_tokens(old: list[Row], new: list[Row]) -> Step | None:
    """Find stretches of ids that all became one id, or the reverse: the id of the unknown token."""
    for a, b, words in (
        (old, new, "unknown (id {}) that were known before"),
        (new, old, "known that were unknown (id {}) before"),
    ):
        changes = _changes(a, b)
        ids = {id_ for _, stretch in changes for id_ in stretch}
        if len(ids) == 1 and len(changes) > 1 and not any(ids & set(row) for row in a):
            unknown = f"given with {len(changes)} words {words.format(*ids)}"
            return Step("unknown tokens", unknown, {"unknown": (*ids,), "words": len(changes)})
    return None


def _changes(old: list[Row], new: list[Row]) -> list[tuple[Row, Row]]:
    """Return each differing stretch of ids, before and after."""
    return [
        (a[i:j], b[k:m])
        for a, b in zip(old, new, strict=True)
        for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
