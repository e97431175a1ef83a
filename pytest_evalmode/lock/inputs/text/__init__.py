"""Text, tokenised or not: padding, special tokens, truncation, casing, vocabulary; a cause a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs import sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, told
from pytest_evalmode.lock.inputs.text.masks import marked
from pytest_evalmode.lock.inputs.text.padding import both, cores, filler, padding
from pytest_evalmode.lock.inputs.text.rows import Row, Words
from pytest_evalmode.lock.inputs.text.special import prefixed, replaced, special
from pytest_evalmode.lock.inputs.text.spelling import cased, rewritten, spelt, surrounded
from pytest_evalmode.lock.inputs.text.truncation import truncated
from pytest_evalmode.lock.inputs.text.vocabulary import mapping, renamed, respelt, unknown

__all__ = ["explain", "explain_texts", "is_tokens", "mapping"]


def explain(was: Array, now: Array, words: Words | None = None) -> Diagnosis | None:
    """The diagnosis of ids, a text a row, if a known cause explains the difference."""
    if all(np.isin(each, (0, 1)).all() for each in (was, now)):
        return marked(was, now)
    steps: list[Step] = []
    fillers = filler(was), filler(now)
    old, new = (cores(each, pad) for each, pad in zip((was, now), both(*fillers), strict=True))
    if len(old) != len(new) or old != new:
        index = sample_order.places(old, new)
        if index is not None and index != list(range(len(old))):
            steps += sample_order.describe(len(old), index)
            old = [old[i] for i in index]
    if len(old) != len(new):
        return None
    if old != new:
        found = next(_texts(old, new, words), None)
        if found is None:
            return None
        steps += found
    padded = padding(was, now, fillers, bool(steps))
    return told("tokens", steps + padded) if steps or padded else None


def _texts(old: list[Row], new: list[Row], words: Words | None) -> Iterator[list[Step]]:
    """What may have been done to the texts, the plainest first; special tokens at the ends come and go."""
    longest = max(map(len, old)), max(map(len, new))
    ends = list(special(old, new))
    for steps, a, b, _ in ends:
        if a == b:
            yield steps
    for steps, a, b, _ in ends:
        found = replaced(a, b)
        if found is not None:
            yield [*steps, found]
    for steps, a, b, _ in sorted(ends, key=lambda each: len(each[0])):
        found = prefixed(a, b)
        if found is not None:
            yield [*steps, found]
    for steps, a, b, (head, tail) in ends:
        found = truncated(a, b, longest)
        if found is not None and min(map(len, (*old, *new))) > head + tail:
            yield [*steps, found]
    if words is not None:
        for steps, a, b, _ in ends:
            found_words = spelt(a, b, words, longest)
            if found_words:
                yield [*steps, *found_words]
    yield from ([found] for found in (renamed(old, new), unknown(old, new), respelt(old, new)) if found is not None)


def explain_texts(was: Array, now: Array) -> Diagnosis | None:
    """The diagnosis of texts, which are arrays of strings."""
    a, b = ([str(each) for each in array.ravel()] for array in (was, now))
    steps: list[Step] = []
    index = sample_order.places(a, b)
    if index is not None:
        return told("texts", sample_order.describe(len(a), index))
    if len(a) != len(b):
        return None
    other_case = cased(a, b)
    if other_case is not None:
        return told("texts", [other_case])
    if [" ".join(each.split()) for each in a] == [" ".join(each.split()) for each in b]:
        steps.append(Step("white space", "given with other white space"))
    elif all(x.startswith(y) or x.endswith(y) for x, y in zip(a, b, strict=True)):
        steps.append(Step("truncation", f"cut ({sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} texts)"))
    else:
        steps += filter(None, [rewritten(a, b) or surrounded(a, b)])
    return told("texts", steps) if steps else None


def is_tokens(was: Array, now: Array) -> bool:
    """Whether both are ids, a text a row."""
    return all(
        each.dtype.kind in "iu" and each.dtype != np.uint8 and each.ndim == 2 and each.size for each in (was, now)
    )
