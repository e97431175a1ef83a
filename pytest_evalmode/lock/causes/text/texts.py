"""Causes of changed texts: case, accents, whitespace, codecs, prompts, truncation."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial

from pytest_evalmode.lock.causes.cause import Array, Diagnosis, Step, join_steps
from pytest_evalmode.lock.causes.text.tokens import find_affix


def explain_texts(was: Array, now: Array) -> Diagnosis | None:
    """Return the diagnosis of arrays of strings of any shape; None without a known cause."""
    old, new = ([str(each) for each in array.ravel()] for array in (was, now))
    steps = _find_changes(old, new) if was.shape == now.shape else iter(())
    return next((join_steps("texts", [step]) for step in steps), None)


def _find_changes(old: list[str], new: list[str]) -> Iterator[Step]:
    for kind, function, words in _FUNCTIONS:
        if _apply(function, old) == new:
            yield Step(kind, words)
        elif _apply(function, new) == old:
            yield Step(kind, f"no longer {words}")
    for kind, form, words in _FORMS:
        if _apply(form, old) == _apply(form, new):
            yield Step(kind, words)
    if len(old) > 1 and (found := find_affix(old, new)) is not None:
        affix, is_new, is_start = found
        where = "before" if is_start else "after"
        yield Step("prompt", f"given {'with' if is_new else 'without'} {affix[:40]!r} {where} every text")
    if all(x.startswith(y) or x.endswith(y) for x, y in zip(old, new, strict=True)):
        yield Step("truncation", f"cut ({sum(x != y for x, y in zip(old, new, strict=True))} of {len(old)} texts)")


def _apply(function: Callable[[str], object], texts: list[str]) -> list[object] | None:
    try:
        return list(map(function, texts))
    except UnicodeError:
        return None


def _without_accents(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if not unicodedata.combining(each))


# The kind, the function that was applied, and the words.
_FUNCTIONS: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("casing", str.lower, "lowercased"),
    ("encoding", lambda text: text.encode().decode("latin-1"), "decoded as Latin-1 instead of UTF-8"),
    ("encoding", lambda text: text.encode().decode("cp1252"), "decoded as Windows-1252 instead of UTF-8"),
    ("escapes", html.escape, "escaped as HTML"),
)
# The kind, a form in which the texts are still the same, and the words.
_FORMS: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("casing", str.lower, "given in a different case"),
    ("unicode", partial(unicodedata.normalize, "NFKC"), "given in another Unicode normalization form (NFC, NFD, NFKC)"),
    ("accents", _without_accents, "given with different accents"),
    ("white space", str.split, "given with different whitespace"),
)
