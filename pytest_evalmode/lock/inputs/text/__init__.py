"""Changes of text, tokenized or not: padding, special tokens, truncation, casing, vocabulary."""

from __future__ import annotations

import re
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
    find_other_vocabulary,
    find_unknown_tokens,
)

__all__ = ["explain_ragged", "explain_texts", "explain_tokens", "find_id_mapping", "is_tokens", "read_ragged"]


def explain_tokens(was: Array, now: Array, vocabularies: Vocabularies | None = None) -> Diagnosis | None:
    """Return the diagnosis of token ids or attention masks, if a known cause explains the difference.

    Args:
        was: The locked token ids: an integer array of shape (texts, tokens).
        now: The current token ids, likewise; both sizes may differ.
        vocabularies: The text of each token id, in the locked and in the current run, if known.
    """
    if all(np.isin(each, (0, 1)).all() for each in (was, now)):
        return explain_masks(was, now)
    padding_ids = find_padding_id(was), find_padding_id(now)
    old, new = (strip_padding(each, id_) for each, id_ in zip((was, now), share_padding_id(*padding_ids), strict=True))
    steps = _explain_rows(old, new, vocabularies)
    padding_steps = None if steps is None else find_padding_changes(was, now, padding_ids, bool(steps))
    if steps is None or padding_steps is None:
        return None
    return diagnosis_of_steps("tokens", steps + padding_steps) if steps or padding_steps else None


def explain_ragged(old: list[Row], new: list[Row], vocabularies: Vocabularies | None = None) -> Diagnosis:
    """Return the diagnosis of rows of token ids of unequal lengths, which are not padded."""
    steps = _explain_rows(old, new, vocabularies)
    if steps:
        return diagnosis_of_steps("tokens", steps)
    differ = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    count = f"{len(new)} texts, not {len(old)}" if len(old) != len(new) else f"{len(differ)} of {len(old)} texts"
    return Diagnosis(
        f"tokens differ, cause not recognized: {count}, first: text {differ[0] if differ else 0}",
        (),
        {"samples": tuple(differ[:32])},
    )


def read_ragged(was: Array, now: Array) -> tuple[list[Row], list[Row]] | None:
    """Return both arrays as rows of token ids, if one holds ids of unequal lengths as texts, such as "1 11 12"."""
    if "U" not in (was.dtype.kind, now.dtype.kind):
        return None
    sides = []
    for each in (was, now):
        if (
            each.dtype.kind == "U"
            and each.ndim == 1
            and all(re.fullmatch(r"(-?\d+( -?\d+)*)?", text) for text in each.tolist())
        ):
            sides.append([tuple(map(int, text.split())) for text in each.tolist()])
        elif each.dtype.kind in "iu" and each.ndim == 2:
            sides.append([tuple(row) for row in each.tolist()])
        else:
            return None
    return sides[0], sides[1]


def _explain_rows(old: list[Row], new: list[Row], vocabularies: Vocabularies | None) -> list[Step] | None:
    """Return the steps that explain rows of token ids without padding; None if no known cause does."""
    steps: list[Step] = []
    if len(old) != len(new) or old != new:
        index = sample_order.match_samples(old, new)
        if index is not None and index != list(range(len(old))):
            steps += sample_order.order_steps(len(old), index)
            old = [old[i] for i in index]
    if len(old) != len(new):
        return None
    if old != new:
        text_steps = next(_try_text_changes(old, new, vocabularies), None)
        if text_steps is None:
            return None
        steps += text_steps
    return steps


def _try_text_changes(old: list[Row], new: list[Row], vocabularies: Vocabularies | None) -> Iterator[list[Step]]:
    """Yield the changes that explain the texts, the simplest first, with or without a change of special tokens."""
    longest = max(map(len, old)), max(map(len, new))
    ends = list(try_special_tokens(old, new))
    for steps, a, b, _ in ends:
        if a == b:
            yield steps
    for steps, a, b, _ in ends:
        step = find_replaced_ids(a, b)
        if step is not None:
            yield [*steps, step]
    for steps, a, b, _ in sorted(ends, key=lambda each: len(each[0])):
        step = find_prompt_tokens(a, b)
        if step is not None:
            yield [*steps, step]
    for steps, a, b, (head, tail) in ends:
        step = find_truncation(a, b, longest)
        if step is not None and min(map(len, (*old, *new))) > head + tail:
            yield [*steps, step]
    if vocabularies is not None:
        for steps, a, b, _ in ends:
            spelling_steps = compare_spelling(a, b, vocabularies, longest)
            if spelling_steps:
                yield [*steps, *spelling_steps]
    for step in (find_other_vocabulary(old, new), find_unknown_tokens(old, new)):
        if step is not None:
            yield [step]


def explain_texts(was: Array, now: Array) -> Diagnosis | None:
    """Return the diagnosis of texts, if a known cause explains the difference.

    Args:
        was: The locked texts: an array of strings of any shape.
        now: The current texts, likewise.
    """
    a, b = ([str(each) for each in array.ravel()] for array in (was, now))
    steps: list[Step] = []
    index = sample_order.match_samples(a, b)
    if index is not None:
        return diagnosis_of_steps("texts", sample_order.order_steps(len(a), index))
    if len(a) != len(b):
        return None
    case_step = find_case_change(a, b)
    if case_step is not None:
        return diagnosis_of_steps("texts", [case_step])
    if [" ".join(each.split()) for each in a] == [" ".join(each.split()) for each in b]:
        steps.append(Step("white space", "given with different whitespace"))
    elif all(x.startswith(y) or x.endswith(y) for x, y in zip(a, b, strict=True)):
        steps.append(Step("truncation", f"cut ({sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} texts)"))
    else:
        steps += filter(None, [find_codec(a, b) or find_prompt_text(a, b)])
    return diagnosis_of_steps("texts", steps) if steps else None


def is_tokens(was: Array, now: Array) -> bool:
    """Return whether both arrays look like token ids: non-empty, of shape (texts, tokens), integers but not uint8."""
    return all(
        each.dtype.kind in "iu" and each.dtype != np.uint8 and each.ndim == 2 and each.size for each in (was, now)
    )
