"""The text itself: its letters, its pieces."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row, Vocabularies
from pytest_evalmode.lock.inputs.text.truncation import truncation_step

_SPECIAL_PIECE = re.compile(r"\[.*\]$|<.*>$")


def compare_spelling(old: list[Row], new: list[Row], words: Vocabularies, longest: tuple[int, int]) -> list[Step]:
    """The same text once the ids are read: in other letters, in other pieces, or under other ids."""
    if not all(id_ in known for rows, known in zip((old, new), words, strict=True) for row in rows for id_ in row):
        return []
    a, b = ([[known[i] for i in row] for row in rows] for rows, known in zip((old, new), words, strict=True))
    if a == b:
        return [Step("vocabulary", "given in another vocabulary (the same pieces under other ids)")]
    if any([*filter(_SPECIAL_PIECE.match, x)] != [*filter(_SPECIAL_PIECE.match, y)] for x, y in zip(a, b, strict=True)):
        return []
    x, y = (
        ["".join(_plain(piece) for piece in row if not _SPECIAL_PIECE.match(piece)) for row in rows] for rows in (a, b)
    )
    if x == y:
        return [Step("pieces", "split into other pieces of the same text (another vocabulary)")]
    other_case = find_case_change(x, y)
    if other_case is not None:
        return [other_case]
    cut = [i for i, (p, q) in enumerate(zip(x, y, strict=True)) if p.lower() != q.lower()]
    if all(x[i].lower().startswith(y[i].lower()) for i in cut) and len({len(new[i]) for i in cut}) == 1:
        other_case = find_case_change([p[: len(q)] for p, q in zip(x, y, strict=True)], y)
        step = truncation_step(f"cut to {longest[1]} tokens", "at the end", cut, len(old), longest[1])
        return [other_case, step] if other_case is not None else []
    return []


def _plain(piece: str) -> str:
    """A piece without the marks by which tokenizers tell where words begin."""
    return piece.removeprefix("##").replace("Ġ", "").replace("▁", "").removesuffix("</w>")


def _unaccented(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if not unicodedata.combining(each))


def find_case_change(a: list[str], b: list[str]) -> Step | None:
    """Texts that are the same but for case, accents or the form of Unicode."""
    if all(x.lower() == y.lower() for x, y in zip(a, b, strict=True)):
        if all(y == y.lower() for y in b):
            return Step("casing", "lower-cased", {"lower": True})
        if all(x == x.lower() for x in a):
            return Step("casing", "not lower-cased", {"lower": False})
        return Step("casing", "given in other case")
    if all(unicodedata.normalize("NFKC", x) == unicodedata.normalize("NFKC", y) for x, y in zip(a, b, strict=True)):
        return Step("unicode", "given in another form of Unicode (NFC, NFD, NFKC)")
    if all(_unaccented(x).lower() == _unaccented(y).lower() for x, y in zip(a, b, strict=True)):
        other_case = any(_unaccented(x) != _unaccented(y) for x, y in zip(a, b, strict=True))
        return Step(
            "accents", "given with other accents and in other case" if other_case else "given with other accents"
        )
    return None


def find_codec(a: list[str], b: list[str]) -> Step | None:
    """Texts that went through a codec or an escape that they should not have, or no longer go through it."""
    for kind, function, words in _REWRITES:
        if _all(function, a, b):
            return Step(kind, words)
        if _all(function, b, a):
            return Step(kind, f"no longer {words}")
    return None


def _mojibake(codec: str) -> Callable[[str], str]:
    return lambda text: text.encode("utf-8").decode(codec)


_REWRITES: tuple[tuple[str, Callable[[str], str], str], ...] = (
    ("encoding", _mojibake("latin-1"), "decoded as Latin-1, and are UTF-8"),
    ("encoding", _mojibake("cp1252"), "decoded as Windows-1252, and are UTF-8"),
    ("escapes", html.escape, "escaped as HTML"),
    ("escapes", lambda text: html.escape(text, quote=False), "escaped as HTML"),
)


def _all(function: Callable[[str], str], a: list[str], b: list[str]) -> bool:
    try:
        return all(function(x) == y for x, y in zip(a, b, strict=True))
    except UnicodeError:
        return False


def find_prompt_text(a: list[str], b: list[str]) -> Step | None:
    """The same words before or after every text: a prompt."""
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
