"""Tokenised text, and text: padding, special tokens, truncation, casing, vocabulary."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import product

import numpy as np

from pytest_evalmode.lock.inputs import order
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, told

Row = tuple[int, ...]
_SPECIAL_PIECE = re.compile(r"\[.*\]$|<.*>$")
Words = tuple[Mapping[int, str], Mapping[int, str]]  # what the ids stand for, then and now

_SPECIAL = 3  # special tokens at an end are no more than these
_FEW = 3  # tokens replaced throughout; more are another vocabulary
_ENDS = sorted(product(range(_SPECIAL + 1), repeat=4), key=lambda ends: (sum(ends), max(ends)))


def explain(was: Array, now: Array, words: Words | None = None) -> Diagnosis | None:
    """The diagnosis of ids, a text a row, if a known cause explains the difference."""
    if all(np.isin(each, (0, 1)).all() for each in (was, now)):
        return _marked(was, now)
    steps: list[Step] = []
    filler = _filler(was), _filler(now)
    old, new = (_cores(each, pad) for each, pad in zip((was, now), _both(*filler), strict=True))
    if len(old) != len(new) or old != new:
        index = order.places(old, new)
        if index is not None and index != list(range(len(old))):
            steps += order.describe(len(old), index)
            old = [old[i] for i in index]
    if len(old) != len(new):
        return None
    if old != new:
        found = next(_texts(old, new, words), None)
        if found is None:
            return None
        steps += found
    padding = _padding(was, now, filler, bool(steps))
    return told("tokens", steps + padding) if steps or padding else None


def _both(a: int | None, b: int | None) -> tuple[int | None, int | None]:
    """Where one is not padded at all, the other's filler may stand in it too."""
    return a if a is not None else b, b if b is not None else a


def _filler(ids: Array) -> int | None:
    """The id that fills rows up: only ever at an end of a row, in runs of differing lengths."""
    runs: dict[int, list[int]] = {}
    for row in ids.tolist():
        for end in (row, row[::-1]):
            length = next((i for i, each in enumerate(end) if each != end[0]), len(end))
            runs.setdefault(end[0], []).append(length)
    counts = Counter(ids.ravel().tolist())
    fit = [
        id_
        for id_, lengths in runs.items()
        if max(lengths) > 1 and sum(lengths) >= counts[id_] and set(lengths) != {ids.shape[1]}
    ]
    return max(fit, key=lambda id_: counts[id_], default=None)


def _cores(ids: Array, filler: int | None) -> list[Row]:
    """The rows without what fills them up."""
    return [_stripped(row, filler) for row in ids.tolist()]


def _stripped(row: list[int], filler: int | None) -> Row:
    start, end = 0, len(row)
    while end > start and row[end - 1] == filler:
        end -= 1
    while start < end and row[start] == filler:
        start += 1
    return tuple(row[start:end])


def _marked(was: Array, now: Array) -> Diagnosis | None:
    """The diagnosis of masks, which mark the tokens that are no padding."""
    steps: list[Step] = []
    old, new = (each.sum(1).tolist() for each in (was, now))
    if len(old) != len(new) or (old != new and sorted(old) == sorted(new)):
        index = order.places(old, new)
        if index is None:
            return None
        steps += order.describe(len(old), index)
    elif old != new:
        most = max(new)
        shift = next((b - a for a, b in zip(old, new, strict=True) if b < most), new[0] - old[0])
        cut = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a + shift != b]
        if any(new[i] != most or old[i] + shift < most for i in cut):
            return None
        if shift:
            words = f"marked with {abs(shift)} {'more' if shift > 0 else 'fewer'} in every text"
            steps.append(Step("length", words, {"tokens": shift}))
        if cut:
            steps.append(_cut_step(f"cut to {most} tokens", "(by the mask)", cut, len(old), most))
    steps += _padding(was, now, (0, 0), bool(steps))
    return told("tokens", steps) if steps else None


def _padding(was: Array, now: Array, filler: tuple[int | None, int | None], changed: bool) -> list[Step]:
    a, b = filler
    old, new = _side(was, a), _side(now, b)
    words: list[str] = []
    details: dict[str, object] = {}
    if a is not None and b is not None and a != b:
        words.append(f"padded with id {b}, not {a}")
        details["filler"] = (a, b)
    if old and new and old != new:
        words.append(f"padded on the {new}, not on the {old}")
        details["side"] = (old, new)
    if was.shape[1] != now.shape[1] and not changed:
        words.append(f"padded to {now.shape[1]} tokens, not {was.shape[1]}")
        details["width"] = (was.shape[1], now.shape[1])
    return [Step("padding", " and ".join(words), details)] if words else []


def _side(ids: Array, filler: int | None) -> str:
    if filler is None:
        return ""
    left, right = ((ids[:, i] == filler).any() for i in (0, -1))
    return "left" if left and not right else "right" if right and not left else ""


def _texts(old: list[Row], new: list[Row], words: Words | None) -> Iterator[list[Step]]:
    """What may have been done to the texts, the plainest first; special tokens at the ends come and go."""
    longest = max(map(len, old)), max(map(len, new))
    ends = list(_special(old, new))
    for steps, a, b, _ in ends:
        if a == b:
            yield steps
    for steps, a, b, _ in ends:
        found = _replaced(a, b)
        if found is not None:
            yield [*steps, found]
    for steps, a, b, (head, tail) in ends:
        found = _truncated(a, b, longest)
        if found is not None and min(map(len, (*old, *new))) > head + tail:
            yield [*steps, found]
    if words is not None:
        for steps, a, b, _ in ends:
            spelt = _spelt(a, b, words, longest)
            if spelt:
                yield [*steps, *spelt]
    yield from ([found] for found in (_renamed(old, new), _unknown(old, new), _respelt(old, new)) if found is not None)


def _special(old: list[Row], new: list[Row]) -> Iterator[tuple[list[Step], list[Row], list[Row], tuple[int, int]]]:
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
            words.append(f"{where} with {_ids(b)}, not {_ids(a)}")
    return Step("special tokens", " and ".join(words), {"special tokens": (old, new)})


def _ids(row: Row) -> str:
    return f"id {row[0]}" if len(row) == 1 else f"ids {row}" if row else "no special token"


def _replaced(old: list[Row], new: list[Row]) -> Step | None:
    """A few ids given as others, wherever they stand."""
    pairs = _mapping(old, new)
    if pairs is None or not 0 < len(pairs) <= _FEW or len(pairs) * 2 > len({id_ for row in old for id_ in row}):
        return None
    if any(sum(row.count(id_) for row in old) < 2 for id_ in pairs):
        return None  # once is no rule
    shown = ", ".join(f"id {b} for {a}" for a, b in pairs.items())
    return Step("special tokens", f"given with {shown} throughout", {"replaced": pairs})


def _renamed(old: list[Row], new: list[Row]) -> Step | None:
    pairs = _mapping(old, new)
    if pairs is None or len(pairs) <= _FEW or 2 * sum(map(len, old)) < 3 * len({id_ for row in old for id_ in row}):
        return None  # where ids hardly recur, any others would go with them one for one
    words = f"given in another vocabulary ({len(pairs)} ids are others, one for one)"
    return Step("vocabulary", words, {"replaced": dict(list(pairs.items())[:32])})


def _mapping(old: list[Row], new: list[Row]) -> dict[int, int] | None:
    """The ids that differ, if each became one other and no two the same."""
    if [len(row) for row in old] != [len(row) for row in new]:
        return None
    pairs = {(a, b) for row, other in zip(old, new, strict=True) for a, b in zip(row, other, strict=True)}
    mapping = dict(pairs)
    if len(mapping) != len(pairs) or len(set(mapping.values())) != len(mapping):
        return None
    return {a: b for a, b in sorted(mapping.items()) if a != b}


def _truncated(old: list[Row], new: list[Row], longest: tuple[int, int]) -> Step | None:
    """Rows cut at one end to the same length; `longest` are the rows with their special tokens."""
    for long, short, words, length in (
        (old, new, "cut to {} tokens", longest[1]),
        (new, old, "not cut to {} tokens", longest[0]),
    ):
        cut = [i for i, (a, b) in enumerate(zip(long, short, strict=True)) if a != b]
        lengths = {len(short[i]) for i in cut}
        if len(lengths) != 1 or any(len(row) > max(lengths) for row in short):
            continue
        for side, kept in (("at the end", _first), ("at the start", _last)):
            if all(kept(long[i], len(short[i])) == short[i] and len(short[i]) < len(long[i]) for i in cut):
                return _cut_step(words.format(length), side, cut, len(old), length)
    return None


def _cut_step(words: str, side: str, cut: list[int], n: int, length: int) -> Step:
    details = {"length": length, "side": side, "texts": tuple(cut[:32])}
    return Step("truncation", f"{words} {side} ({len(cut)} of {n} texts)", details)


def _first(row: Row, n: int) -> Row:
    return row[:n]


def _last(row: Row, n: int) -> Row:
    return row[len(row) - n :]


def _spelt(old: list[Row], new: list[Row], words: Words, longest: tuple[int, int]) -> list[Step]:
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
    cased = _cased(x, y)
    if cased is not None:
        return [cased]
    cut = [i for i, (p, q) in enumerate(zip(x, y, strict=True)) if p.lower() != q.lower()]
    if all(x[i].lower().startswith(y[i].lower()) for i in cut) and len({len(new[i]) for i in cut}) == 1:
        cased = _cased([p[: len(q)] for p, q in zip(x, y, strict=True)], y)
        step = _cut_step(f"cut to {longest[1]} tokens", "at the end", cut, len(old), longest[1])
        return [cased, step] if cased is not None else []
    return []


def _plain(piece: str) -> str:
    """A piece without the marks by which tokenizers tell where words begin."""
    return piece.removeprefix("##").replace("Ġ", "").replace("▁", "").removesuffix("</w>")


def _unaccented(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if not unicodedata.combining(each))


def _cased(a: list[str], b: list[str]) -> Step | None:
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
        cased = any(_unaccented(x) != _unaccented(y) for x, y in zip(a, b, strict=True))
        return Step("accents", "given with other accents and in other case" if cased else "given with other accents")
    return None


def _changes(old: list[Row], new: list[Row]) -> list[tuple[Row, Row]]:
    """The stretches that differ."""
    return [
        (a[i:j], b[k:m])
        for a, b in zip(old, new, strict=True)
        for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        if tag != "equal"
    ]


def _unknown(old: list[Row], new: list[Row]) -> Step | None:
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


def _respelt(old: list[Row], new: list[Row]) -> Step | None:
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


def explain_texts(was: Array, now: Array) -> Diagnosis | None:
    """The diagnosis of texts, which are arrays of strings."""
    a, b = ([str(each) for each in array.ravel()] for array in (was, now))
    steps: list[Step] = []
    index = order.places(a, b)
    if index is not None:
        return told("texts", order.describe(len(a), index))
    if len(a) != len(b):
        return None
    cased = _cased(a, b)
    if cased is not None:
        return told("texts", [cased])
    if [" ".join(each.split()) for each in a] == [" ".join(each.split()) for each in b]:
        steps.append(Step("white space", "given with other white space"))
    elif all(x.startswith(y) or x.endswith(y) for x, y in zip(a, b, strict=True)):
        steps.append(Step("truncation", f"cut ({sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} texts)"))
    return told("texts", steps) if steps else None


def is_tokens(was: Array, now: Array) -> bool:
    """Whether both are ids, a text a row."""
    return all(
        each.dtype.kind in "iu" and each.dtype != np.uint8 and each.ndim == 2 and each.size for each in (was, now)
    )
