"""Changes of the text itself: casing, accents, Unicode, encoding, prompts, and other tokens for the same text."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row, Vocabularies
from pytest_evalmode.lock.inputs.text.truncation import truncation_step

_SPECIAL_TOKEN = re.compile(r"\[.*\]$|<.*>$")


def compare_spelling(
    old: list[Row], new: list[Row], vocabularies: Vocabularies, longest: tuple[int, int]
) -> list[Step]:
    """Return the steps if the ids stand for the same text: in another case, split differently, or with other ids."""
    sides = list(zip((old, new), vocabularies, strict=True))
    if not all(id_ in vocabulary for rows, vocabulary in sides for row in rows for id_ in row):
        return []
    a, b = ([[vocabulary[id_] for id_ in row] for row in rows] for rows, vocabulary in sides)
    if a == b:
        return [Step("vocabulary", "tokenized with another vocabulary (the same tokens have other ids)")]
    if any([*filter(_SPECIAL_TOKEN.match, x)] != [*filter(_SPECIAL_TOKEN.match, y)] for x, y in zip(a, b, strict=True)):
        return []
    x, y = (
        ["".join(_plain(token) for token in row if not _SPECIAL_TOKEN.match(token)) for row in rows] for rows in (a, b)
    )
    if x == y:
        return [Step("pieces", "split differently for the same text (another vocabulary)")]
    case_step = find_case_change(x, y)
    if case_step is not None:
        return [case_step]
    cut = [i for i, (p, q) in enumerate(zip(x, y, strict=True)) if p.lower() != q.lower()]
    if all(x[i].lower().startswith(y[i].lower()) for i in cut) and len({len(new[i]) for i in cut}) == 1:
        case_step = find_case_change([p[: len(q)] for p, q in zip(x, y, strict=True)], y)
        step = truncation_step(f"cut to {longest[1]} tokens", "at the end", cut, len(old), longest[1])
        return [case_step, step] if case_step is not None else []
    return []


def _plain(token: str) -> str:
    """Remove the markers of word boundaries that WordPiece, BPE and SentencePiece add."""
    return token.removeprefix("##").replace("Ġ", "").replace("▁", "").removesuffix("</w>")


def _unaccented(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if not unicodedata.combining(each))


def find_case_change(a: list[str], b: list[str]) -> Step | None:
    """Find texts that differ only in case, accents or the Unicode normalization form."""
    if all(x.lower() == y.lower() for x, y in zip(a, b, strict=True)):
        if all(y == y.lower() for y in b):
            return Step("casing", "lowercased", {"lower": True})
        if all(x == x.lower() for x in a):
            return Step("casing", "not lowercased", {"lower": False})
        return Step("casing", "given in a different case")
    if all(unicodedata.normalize("NFKC", x) == unicodedata.normalize("NFKC", y) for x, y in zip(a, b, strict=True)):
        return Step("unicode", "given in another Unicode normalization form (NFC, NFD, NFKC)")
    if all(_unaccented(x).lower() == _unaccented(y).lower() for x, y in zip(a, b, strict=True)):
        other_case = any(_unaccented(x) != _unaccented(y) for x, y in zip(a, b, strict=True))
        return Step("accents", f"given with different accents{' and in a different case' if other_case else ''}")
    return None


def find_codec(a: list[str], b: list[str]) -> Step | None:
    """Find texts that are now, or are no longer, decoded with the wrong codec or escaped as HTML."""
    for kind, function, words in _REWRITES:
        if _all(function, a, b):
            return Step(kind, words)
        if _all(function, b, a):
            return Step(kind, f"no longer {words}")
    return None


def _mojibake(codec: str) -> Callable[[str], str]:
    return lambda text: text.encode("utf-8").decode(codec)


_REWRITES: tuple[tuple[str, Callable[[str], str], str], ...] = (
    ("encoding", _mojibake("latin-1"), "decoded as Latin-1 instead of UTF-8"),
    ("encoding", _mojibake("cp1252"), "decoded as Windows-1252 instead of UTF-8"),
    ("escapes", html.escape, "escaped as HTML"),
    ("escapes", lambda text: html.escape(text, quote=False), "escaped as HTML"),
)


def _all(function: Callable[[str], str], a: list[str], b: list[str]) -> bool:
    try:
        return all(function(x) == y for x, y in zip(a, b, strict=True))
    except UnicodeError:
        return False


def find_prompt_text(a: list[str], b: list[str]) -> Step | None:
    """Find a prompt: the same words before or after every text."""
    for longer, shorter, words in ((b, a, "given with {!r} {}"), (a, b, "given without {!r} {}")):
        pairs = list(zip(longer, shorter, strict=True))
        counts = {len(x) - len(y) for x, y in pairs}
        if len(counts) != 1 or min(counts) <= 0 or len(pairs) < 2:
            continue
        n = counts.pop()
        for where, more, rest in (
            ("before every text", {x[:n] for x, _ in pairs}, all(x[n:] == y for x, y in pairs)),
            ("after every text", {x[-n:] for x, _ in pairs}, all(x[:-n] == y for x, y in pairs)),
        ):
            if rest and len(more) == 1:
                return Step("prompt", words.format(more.pop()[:40], where))
    return None
