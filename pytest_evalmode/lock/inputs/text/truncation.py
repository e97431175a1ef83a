"""Changes of truncation."""

from __future__ import annotations

from pytest_evalmode.lock.inputs.diagnosis import Step
from pytest_evalmode.lock.inputs.text.rows import Row


def find_truncation(old: list[Row], new: list[Row], longest: tuple[int, int]) -> Step | None:
    """Find rows that were cut at one end to the same length.

    Args:
        old: The locked rows, without special tokens.
        new: The current rows, without special tokens.
        longest: The lengths of the longest locked and current rows, with special tokens.
    """
    for long, short, words, length in (
        (old, new, "cut to {} tokens", longest[1]),
        (new, old, "not cut to {} tokens", longest[0]),
    ):
        cut = [i for i, (a, b) in enumerate(zip(long, short, strict=True)) if a != b]
        lengths = {len(short[i]) for i in cut}
        if len(lengths) != 1 or any(len(row) > max(lengths) for row in short):
            continue
        for side, part in (("at the end", _first), ("at the start", _last)):
            if all(part(long[i], len(short[i])) == short[i] and len(short[i]) < len(long[i]) for i in cut):
                return truncation_step(words.format(length), side, cut, len(old), length)
    return None


def truncation_step(words: str, side: str, cut: list[int], n: int, length: int) -> Step:
    details = {"length": length, "side": side, "texts": tuple(cut[:32])}
    return Step("truncation", f"{words} {side} ({len(cut)} of {n} texts)", details)


def _first(row: Row, n: int) -> Row:
    return row[:n]


def _last(row: Row, n: int) -> Row:
    return row[len(row) - n :]
