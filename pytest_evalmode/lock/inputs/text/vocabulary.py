"""The same text under other ids."""

from __future__ import annotations

from difflib import SequenceMatcher

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row

MOST_REPLACED = 3  # tokens replaced throughout; more are another vocabulary


def find_other_vocabulary(old: list[Row], new: list[Row]) -> Step | None:
    pairs = find_id_mapping(old, new)
    if (
        pairs is None
        or len(pairs) <= MOST_REPLACED
        or 2 * sum(map(len, old)) < 3 * len({id_ for row in old for id_ in row})
    ):
        return None  # where ids hardly recur, any others would go with them one for one
    by = {new - old for old, new in pairs.items()}
    how = f"all shifted by {by.pop()}" if len(by) == 1 else "one for one"
    words = f"given in another vocabulary ({len(pairs)} ids are others, {how})"
    return Step("vocabulary", words, {"replaced": dict(list(pairs.items())[:32])})


def find_id_mapping(old: list[Row], new: list[Row]) -> dict[int, int] | None:
    """The ids that differ, if each became one other and no two the same."""
    if [len(row) for row in old] != [len(row) for row in new]:
        return None
    pairs = {(a, b) for row, other in zip(old, new, strict=True) for a, b in zip(row, other, strict=True)}
    becomes = dict(pairs)
    if len(becomes) != len(pairs) or len(set(becomes.values())) != len(becomes):
        return None
    return {a: b for a, b in sorted(becomes.items()) if a != b}


def find_unknown_tokens(old: list[Row], new: list[Row]) -> Step | None:
    """Stretches that became one and the same id, which did not stand there before."""
    for a, b, words in (
        (old, new, "unknown (id {}), which were known"),
        (new, old, "known, which were unknown (id {})"),
    ):
        changes = _changes(a, b)
        ids = {id_ for _, stretch in changes for id_ in stretch}
        if len(ids) == 1 and len(changes) > 1 and not any(ids & set(row) for row in a):
            told_ = f"given with {len(changes)} words {words.format(*ids)}: another casing, normalisation or vocabulary"
            return Step("unknown tokens", told_, {"unknown": (*ids,), "words": len(changes)})
    return None


def find_other_splits(old: list[Row], new: list[Row]) -> Step | None:
    """Most of the tokens as before, and each stretch that differs always the same way."""
    changes = _changes(old, new)
    total = sum(map(len, old))
    changed = sum(max(len(a), len(b)) for a, b in changes)
    if not changes or changed > 0.5 * total or any(not a or not b for a, b in changes):
        return None
    if len(dict(changes)) != len(set(changes)) or len(changes) < 2:
        return None
    words = (
        f"split otherwise at {len(changes)} places, always the same way: another casing or normalisation of the text"
    )
    return Step("spelling", words, {"places": len(changes), "tokens": changed / total})


def _changes(old: list[Row], new: list[Row]) -> list[tuple[Row, Row]]:
    """The stretches that differ."""
    return [
        (a[i:j], b[k:m])
        for a, b in zip(old, new, strict=True)
        for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
