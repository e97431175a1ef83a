"""Causes that move columns, or reverse or roll an axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs import sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, Cause, Step

# Positions: parameters are the axis and how it was moved.


def _column_order(a: Array, b: Array) -> Iterator[list[int]]:
    if a.ndim == b.ndim == 2 and len(a) == len(b) >= 2:
        index = sample_order.match_identical(a.T, b.T)
        if index is not None and len(set(index)) == len(index):
            yield index


def _count_moved(index: list[int]) -> int:
    rolled = any(index == list(np.roll(range(len(index)), by)) for by in (1, -1))
    return 0 if rolled or index == sorted(index) else len(index)


def _describe_order(a: Array, _: Array, index: list[int]) -> Step:
    details: dict[str, object] = {"order": tuple(index[:32])}
    dropped = sorted(set(range(a.shape[1])) - set(index))
    if dropped:
        columns = f"column{'s' * (len(dropped) > 1)} {', '.join(map(str, dropped[:5]))}"
        return Step("columns", f"given without {columns}", details)
    by = next((n for n in (1, -1) if index == list(np.roll(range(len(index)), n))), 0)
    how = f"moved by one to the {'right' if by > 0 else 'left'}" if by else "in another order"
    return Step("columns", f"given with the columns {how}", details)


def _axis_moves(a: Array, b: Array) -> Iterator[tuple[int, int]]:
    """Propose each axis but the first reversed (shift 0), or rolled."""
    if a.shape != b.shape or a.ndim < 2:
        return
    for axis in range(1, a.ndim):
        if a.shape[axis] > 2:
            yield axis, 0
    for axis in range(1, a.ndim):
        if a.shape[axis] > 2:
            lines = (
                np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]),
                np.moveaxis(b, axis, -1).reshape(-1, b.shape[axis]),
            )
            spectra = [np.fft.rfft(each[:64] - each[:64].mean()) for each in lines]
            lag = int(np.fft.irfft((spectra[1] * np.conj(spectra[0])).sum(0), a.shape[axis]).argmax())
            if lag:
                yield axis, lag if lag <= a.shape[axis] // 2 else lag - a.shape[axis]


def _move_axis(a: Array, move: tuple[int, int]) -> Array:
    return np.roll(a, move[1], move[0]) if move[1] else np.flip(a, move[0])


def _describe_move(a: Array, _: Array, move: tuple[int, int]) -> Step:
    axis, by = move
    name = f"axis {axis}" if a.ndim > 2 else "the last axis"
    if by:
        return Step("shift", f"rolled by {by} along {name}, the end moved to the start", {"axis": axis, "by": by})
    return Step("flip", f"reversed along {name}", {"axis": axis})


MOVES = (
    Cause(_column_order, lambda a, p: a[:, p], _describe_order, _count_moved, is_confirmed=True),
    Cause(_axis_moves, _move_axis, _describe_move, lambda p: int(p[1] != 0)),
)
