"""Proof of causes: a cause is accepted only if applying it to the locked values reproduces the current ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Cause, Step, count_distinct

_NOISE = {"float16": 4 * 2.0**-10, "float32": 5e-6, "float64": 1e-10}  # relative; what other hardware or code changes
_MAX_REST = 0.1  # share of the difference (root mean square) that a cause may leave to rounding
MAX_COLUMNS = 256  # of a table; more are signals
_VALUES_PER_NUMBER = 4  # distinct values that must confirm each fitted number


class Proof(NamedTuple):
    """Steps that reproduce the current values, and how many numbers they take from them."""

    steps: tuple[Step, ...]
    fitted: int = 0


class Pair:
    """The locked and the current values as float64, and what rounding in their dtypes may change.

    With `levels`, both are 8-bit levels: a prediction is rounded and limited to them, and residuals count levels.
    """

    def __init__(self, was: Array, now: Array, *, levels: bool = False) -> None:
        self.a, self.b = np.asarray(was, np.float64), np.asarray(now, np.float64)
        self.levels = levels
        self._epsilon = _epsilon(now)
        # A value near zero may be the difference of large ones, so errors depend on the values around it too.
        self._delta = 4 * _epsilon(was) * (np.abs(self.a) + _scale(np.abs(self.a)))

    def error(self, apply: Callable[[Array], Array]) -> Array:
        """Return the error that rounding may cause in each value after a cause."""
        spread = np.abs(apply(self.a + self._delta) - apply(self.a - self._delta)) if self._delta.any() else 0.0
        return np.asarray(spread + 4 * self._epsilon * (np.abs(self.b) + _scale(np.abs(self.b))) + 1e-300)


def _epsilon(array: Array) -> float:
    """Return the relative error of a value: wide for float64; narrow floats are computed in float32."""
    return 0.0 if array.dtype.kind != "f" else 2.0**-44 if array.itemsize == 8 else 2.0**-23


def fit_lines(a: Array, b: Array, axes: tuple[int, ...] | None = None) -> tuple[Array, Array]:
    """Return the factor and the shift that turn the locked values into the current ones best, over some axes."""
    mean_a, mean_b = a.mean(axes, keepdims=True), b.mean(axes, keepdims=True)
    spread = ((a - mean_a) ** 2).sum(axes, keepdims=True)
    product = ((a - mean_a) * (b - mean_b)).sum(axes, keepdims=True)
    scale = np.where(spread > 0, product / np.where(spread > 0, spread, 1), 1.0)
    return scale, mean_b - scale * mean_a


def prove(causes: Iterable[Cause], pair: Pair) -> list[Proof]:
    """Return the proofs of all causes that reproduce the current values; the first parameters of each cause that do."""
    proofs = []
    with np.errstate(all="ignore"):
        for cause in causes:
            for parameters in cause.recognize(pair.a, pair.b):
                roundings = _reproduces(pair, cause, parameters)
                if roundings is not None:
                    step = cause.describe(pair.a, pair.b, parameters)
                    proofs.append(Proof((step, *roundings), cause.fitted(parameters)))
                    break
    return proofs


def simplest(proofs: Sequence[Proof]) -> list[Step] | None:
    """Return the steps with the fewest steps and fitted numbers; causes that are equally simple are named together."""
    if not proofs:
        return None
    cost = min((len(each.steps), each.fitted) for each in proofs)
    first, *others = [list(each.steps) for each in proofs if (len(each.steps), each.fitted) == cost]
    equal = [each[-1] for each in others if first and each[:-1] == first[:-1] and each[-1].kind != first[-1].kind]
    if equal:
        words = " or ".join(dict.fromkeys(each.words for each in (first[-1], *equal)))
        first[-1] = replace(first[-1], words=words)
    return first


def _reproduces(pair: Pair, cause: Cause, parameters: object) -> list[Step] | None:
    """Return the roundings after which a cause reproduces the current values: none or one; None if it does not."""

    def apply(values: Array) -> Array:
        return np.asarray(cause.apply(values, parameters))

    b, predicted = pair.b, apply(pair.a)
    if predicted.shape != b.shape or not np.isfinite(predicted).all():
        return None
    fitted = 0 if cause.is_confirmed else cause.fitted(parameters)
    if fitted and count_distinct(b) < _VALUES_PER_NUMBER * fitted + 1:
        return None
    change = np.abs(pair.a - b) if pair.a.shape == b.shape else np.abs(b)
    if pair.levels:
        off = np.abs(np.round(np.clip(predicted, 0, 255)) - b)
        return [] if off.max() <= cause.residual and _rms(off) <= _MAX_REST * _rms(change) and change.any() else None
    off = np.abs(predicted - b)
    error = pair.error(apply) + cause.residual * float(np.ptp(b))
    if not np.any(change > (error if cause.residual else 0)):
        return None  # the cause changes nothing
    if np.all(off <= error) and (not cause.residual or _rms(off) <= _MAX_REST * _rms(change)):
        return []
    roundings = _find_roundings(predicted, b, error) if _rms(off) <= _MAX_REST * _rms(change) else iter(())
    return next(([step] for step, _ in roundings), None)


def _find_roundings(predicted: Array, b: Array, error: Array | float) -> Iterator[tuple[Step, Array]]:
    """Yield the roundings of the predicted values that give the current ones, and the distance of rounded values."""
    low, high = predicted - b - error, predicted - b + error
    for name, spacing in _spacings(b):
        if np.all((low <= 0.5001 * spacing) & (high >= -0.5001 * spacing)):
            yield Step("rounding", f"rounded to {name}", {"rounded": name}), spacing
        elif name == "whole numbers" and np.all((low <= spacing) & (high >= 0)):
            yield Step("rounding", f"rounded down to {name}", {"rounded": name}), spacing


def _spacings(b: Array) -> Iterator[tuple[str, Array]]:
    """Yield the grids that all current values lie on, the finest first, and the distance to the next value."""
    if np.abs(b).max(initial=0) < 1e30 and count_distinct(b) > 2:
        single = b.astype(np.float32)
        if np.array_equal(single, b):
            yield "float32", np.spacing(np.abs(single)).astype(float)
        with np.errstate(over="ignore"):
            half = b.astype(np.float16)
        if np.array_equal(half, b):
            yield "float16", np.spacing(np.abs(half)).astype(float)
        if np.array_equal(_bfloat16(b), b):
            yield "bfloat16", np.spacing(np.abs(single)).astype(float) * 2**16
        if np.array_equal(np.round(b), b):
            yield "whole numbers", np.ones_like(b)


def _bfloat16(values: Array) -> Array:
    """Round to the nearest bfloat16 values, ties to even; NumPy does not have this dtype."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)).view(np.float32)


def explain_rounding(was: Array, now: Array) -> Step | None:
    """Return a step if values were rounded, or differ by no more than other hardware or code makes them."""
    a, b = np.asarray(was, np.float64), np.asarray(now, np.float64)
    off = np.abs(a - b)
    for step, spacing in _find_roundings(a, b, 0.0):
        # Values that are all close to their rounded form differ for another reason.
        if float(np.mean(off / spacing)) > 0.02 and not np.array_equal(np.round(a), a):
            return step
    names = {each.dtype.name for each in (was, now) if each.dtype.kind == "f"}
    limit = max((_NOISE.get(name, 0.0) for name in names), default=0.0)
    if names and not np.array_equal(np.round(b), b) and all(np.array_equal(_bfloat16(each), each) for each in (a, b)):
        limit = max(limit, 4 * 2.0**-8)
    if not names or np.any(off > limit * _scale(np.abs(a))):
        return None
    words = f"differ by rounding, by at most {float(off.max()):.2g}: pass rtol and atol"
    return Step("rounding", words, {"max": float(off.max())})


def _scale(size: Array) -> Array:
    """Return how large values are around each value: the largest of its column, or of its channel if that is less."""
    if size.ndim < 2:
        return np.maximum(size, 0.0 if size.ndim == 0 else float(size.max()))
    if size.ndim == 2 and size.shape[1] > MAX_COLUMNS:
        return np.broadcast_to(size.max(1, keepdims=True), size.shape)
    channels = size.max((0, *range(2, size.ndim)), keepdims=True)
    columns = size.max(tuple(range(size.ndim - 1)), keepdims=True) if size.ndim < 4 else channels
    return np.broadcast_to(np.minimum(columns, channels), size.shape)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
