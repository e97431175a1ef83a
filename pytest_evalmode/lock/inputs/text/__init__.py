"""Text, tokenised or not: padding, special tokens, truncation, casing, vocabulary; a cause a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs import sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps
from pytest_evalmode.lock.inputs.text.masks import explain_masks
from pytest_evalmode.lock.inputs.text.padding import (
    find_padding_changes,
    find_padding_id,
    share_padding_id,
    strip_padding,
)
from pytest_evalmode.lock.inputs.text.rows import Row, Vocabularies
from pytest_evalmode.lock.inputs.text.special import find_prompt_tokens, find_replaced_ids, try_special_tokens
from pytest_evalmode.lock.inputs.text.spelling import compare_spelling, find_case_change, find_codec, find_prompt_text
from pytest_evalmode.lock.inputs.text.truncation import find_truncation
from pytest_evalmode.lock.inputs.text.vocabulary import (
    find_id_mapping,
    find_other_splits,
    find_other_vocabulary,
    find_unknown_tokens,
)

__all__ = ["explain_texts", "explain_tokens", "find_id_mapping", "is_tokens"]


def explain_tokens(was: Array, now: Array, words: Vocabularies | None = None) -> Diagnosis | None:
    """The diagnosis of ids, a text a row, if a known cause explains the difference."""
    if all(np.isin(each, (0, 1)).all() for each in (was, now)):
        return explain_masks(was, now)
    steps: list[Step] = []
    fillers = find_padding_id(was), find_padding_id(now)
    old, new = (strip_padding(each, pad) for each, pad in zip((was, now), share_padding_id(*fillers), strict=True))
    if len(old) != len(new) or old != new:
        index = sample_order.match_samples(old, new)
        if index is not None and index != list(range(len(old))):
            steps += sample_order.order_steps(len(old), index)
            old = [old[i] for i in index]
    if len(old) != len(new):
        return None
    if old != new:
        found = next(_texts(old, new, words), None)
        if found is None:
            return None
        steps += found
    padded = find_padding_changes(was, now, fillers, bool(steps))
    return diagnosis_of_steps("tokens", steps + padded) if steps or padded else None


def _texts(old: list[Row], new: list[Row], words: Vocabularies | None) -> Iterator[list[Step]]:
    """What may have been done to the texts, the plainest first; special tokens at the ends come and go."""
    longest = max(map(len, old)), max(map(len, new))
    ends = list(try_special_tokens(old, new))
    for steps, a, b, _ in ends:
        if a == b:
            yield steps
    for steps, a, b, _ in ends:
        found = find_replaced_ids(a, b)
        if found is not None:
            yield [*steps, found]
    for steps, a, b, _ in sorted(ends, key=lambda each: len(each[0])):
        found = find_prompt_tokens(a, b)
        if found is not None:
            yield [*steps, found]
    for steps, a, b, (head, tail) in ends:
        found = find_truncation(a, b, longest)
        if found is not None and min(map(len, (*old, *new))) > head + tail:
            yield [*steps, found]
    if words is not None:
        for steps, a, b, _ in ends:
            found_words = compare_spelling(a, b, words, longest)
            if found_words:
                yield [*steps, *found_words]
    yield from (
        [found]
        for found in (find_other_vocabulary(old, new), find_unknown_tokens(old, new), find_other_splits(old, new))
        if found is not None
    )


def explain_texts(was: Array, now: Array) -> Diagnosis | None:
    """The diagnosis of texts, which are arrays of strings."""
    a, b = ([str(each) for each in array.ravel()] for array in (was, now))
    steps: list[Step] = []
    index = sample_order.match_samples(a, b)
    if index is not None:
        return diagnosis_of_steps("texts", sample_order.order_steps(len(a), index))
    if len(a) != len(b):
        return None
    other_case = find_case_change(a, b)
    if other_case is not None:
        return diagnosis_of_steps("texts", [other_case])
    if [" ".join(each.split()) for each in a] == [" ".join(each.split()) for each in b]:
        steps.append(Step("white space", "given with other white space"))
    elif all(x.startswith(y) or x.endswith(y) for x, y in zip(a, b, strict=True)):
        steps.append(Step("truncation", f"cut ({sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} texts)"))
    else:
        steps += filter(None, [find_codec(a, b) or find_prompt_text(a, b)])
    return diagnosis_of_steps("texts", steps) if steps else None


def is_tokens(was: Array, now: Array) -> bool:
    """Whether both are ids, a text a row."""
    return all(
        each.dtype.kind in "iu" and each.dtype != np.uint8 and each.ndim == 2 and each.size for each in (was, now)
    )
