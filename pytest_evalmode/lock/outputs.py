"""What changed in outputs: scaled, permuted, logits for probabilities.

`_TABLE` lists the causes, those with fewer parameters first. A cause is named only if it predicts all values of this
run from the locked ones, and if the prediction is far nearer than the locked values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_RESIDUAL = 1e-5  # relative to the range of the values; float32 outputs of a softmax agree to about 1e-6
_MIN_VALUES = 8  # distinct values needed for a cause without parameters
_MIN_FITTED = 12  # values per pair of fitted numbers
_FEW = 3  # causes of equal simplicity that are named


@dataclass(frozen=True, slots=True)
class _Prediction:
    """The values that a cause predicts for this run, and its words."""

    words: str
    values: Array
    parameters: int = 0


def describe_change(was: object, now: object) -> str | None:
    """Return what turns the locked outputs into those of this run, or None if that is not recognized.

    Args:
        was: The locked values: a number, or an array of shape (samples, ...).
        now: The values of this run at the same places.
    """
    old, new = np.asarray(was), np.asarray(now)
    if old.dtype.kind not in "biuf" or new.dtype.kind not in "biuf" or not old.size or not new.size:
        return None
    if old.shape == new.shape and old.dtype.kind == new.dtype.kind == "f" and (words := _describe_not_finite(old, new)):
        return words
    old, new = old.astype(np.float64), new.astype(np.float64)
    if not np.isfinite(old).all() or not np.isfinite(new).all() or _equal(old, new):
        return None
    if old.shape == new.shape and (words := _describe_rounding(old, new, np.asarray(now).dtype)):
        return words
    if old.size < _MIN_VALUES or np.unique(old).size < 3:
        return _describe_percent(old, new)
    with np.errstate(all="ignore"):
        fitting = [each for predict in _TABLE for each in predict(old, new) if _fits(each, old, new)]
    if not fitting:
        return None
    fewest = min(each.parameters for each in fitting)
    simplest = dict.fromkeys(each.words for each in fitting if each.parameters == fewest)
    return " or ".join(list(simplest)[:_FEW])


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and np.array_equal(a, b)


def _fits(prediction: _Prediction, was: Array, now: Array) -> bool:
    values = prediction.values
    if values.shape != now.shape or not np.isfinite(values).all() or np.unique(now).size < 2:
        return False
    if np.array_equal(values, now):
        return True  # `was` is not equal to `now`
    residual = _RESIDUAL * max(float(np.ptp(now)), 1e-2 * float(np.abs(now).max()))
    if np.abs(values - now).max() > residual:
        return False
    return was.shape != now.shape or bool(np.abs(was - now).max() > 20 * residual)


def _describe_not_finite(was: Array, now: Array) -> str | None:
    broken, before = int((~np.isfinite(now)).sum()), int((~np.isfinite(was)).sum())
    if broken <= before:
        return None
    return f"{broken} of {now.size} values {'is' if broken == 1 else 'are'} NaN or infinite"


def _describe_rounding(was: Array, now: Array, dtype: np.dtype[Any]) -> str | None:
    if dtype.kind != "f":
        return None
    eps = max(float(np.finfo(dtype).eps), float(np.finfo(np.float32).eps))
    change, size = np.abs(now - was), np.maximum(np.abs(was), float(np.abs(was).max()) / 100)
    if np.any(change > 32 * eps * size):
        return None
    return f"differ by rounding, by at most {change.max():.1g}: pass rtol and atol"


def _describe_percent(was: Array, now: Array) -> str | None:
    """Recognize percent for fraction and the reverse, which even one number shows if only one side exceeds 1."""
    if was.shape != now.shape or not np.any(was):
        return None
    for words, expected, one_sided in (
        ("percent for a fraction: multiplied by 100", was * 100, np.abs(was).max() <= 1 < np.abs(now).max()),
        ("a fraction for percent: divided by 100", was / 100, np.abs(now).max() <= 1 < np.abs(was).max()),
    ):
        if one_sided and np.allclose(expected, now, rtol=1e-6, atol=0):
            return words
    return None


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def _normalize(x: Array) -> Array:
    unit: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit


def _round_to_bfloat16(x: Array) -> Array:
    """Round to the upper 16 bits of a float32, to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


_FUNCTIONS: tuple[tuple[str, str, Callable[[Array], Array], bool], ...] = (
    ("probabilities (softmax) for logits", "logits for probabilities (softmax)", _softmax, True),
    ("log-probabilities for logits", "logits for log-probabilities", lambda x: np.log(_softmax(x)), True),
    ("probabilities (sigmoid) for logits", "logits for probabilities (sigmoid)", lambda x: 1 / (1 + np.exp(-x)), False),
    ("logarithms of the values", "values for their logarithms", np.log, False),
    ("logarithms (base 10) of the values", "values for their logarithms (base 10)", np.log10, False),
    ("square roots of the values", "squares of the values", lambda x: np.sqrt(np.where(x < 0, np.nan, x)), False),
    ("normalized to length 1", "no longer normalized to length 1", _normalize, True),
    ("absolute values", "values for their absolute values", np.abs, False),
    ("clipped at 0 (ReLU)", "no longer clipped at 0 (ReLU)", lambda x: np.maximum(x, 0), False),
    ("clipped to 0 to 1", "no longer clipped to 0 to 1", lambda x: np.clip(x, 0, 1), False),
    ("rounded to integers", "", np.round, False),
    ("rounded to float16", "", lambda x: x.astype(np.float16).astype(np.float64), False),
    ("rounded to bfloat16", "", _round_to_bfloat16, False),
    ("1 minus the values", "1 minus the values", lambda x: 1 - x, False),
)
"""What the outputs are now, if the function was applied or left out; and whether it needs a last axis."""


def _apply_functions(was: Array, now: Array) -> Iterator[_Prediction]:
    for applied, left_out, function, needs_axis in _FUNCTIONS:
        if needs_axis and (was.ndim < 2 or was.shape[-1] < 2):
            continue
        yield _Prediction(applied, function(was))
        if not left_out:  # values near those that are locked would round to them, too
            continue
        inverse = function(now)
        # `now` reproduces the locked values: there is a prediction of these, not of `now`.
        if was.shape == now.shape and _fits(_Prediction("", inverse), now, was):
            yield _Prediction(left_out, now)


def _reduce(was: Array, now: Array) -> Iterator[_Prediction]:
    """Predict class indices for scores, and values in another shape or order of the axes."""
    for axis in range(1, was.ndim):
        yield _Prediction("class indices (argmax) for scores", was.argmax(axis).astype(float))
    if was.shape != now.shape and was.size == now.size:
        yield _Prediction(f"reshaped from {was.shape} to {now.shape}", was.reshape(now.shape))
        for a in range(was.ndim):
            for b in range(a):
                yield _Prediction(f"transposed (dimensions {b} and {a})", was.swapaxes(a, b))


def _reorder(was: Array, now: Array) -> Iterator[_Prediction]:
    """Predict reversed, shifted and permuted axes; the permutation is that of the slices, which must differ."""
    if was.shape != now.shape:
        return
    for axis in range(was.ndim):
        what = "samples" if axis == 0 else "classes or columns" if axis == was.ndim - 1 else f"dimension {axis}"
        yield _Prediction(f"{what} in reverse order", np.flip(was, axis))
        for step in (1, -1):
            yield _Prediction(f"{what} shifted by {step}", np.roll(was, step, axis))
        slices = {side.tobytes(): i for i, side in enumerate(np.moveaxis(was, axis, 0) + 0.0)}
        order = [slices.get(side.tobytes()) for side in np.moveaxis(now, axis, 0) + 0.0]
        if len(slices) == was.shape[axis] and None not in order and was.size > was.shape[axis]:
            shown = ", ".join(map(str, order[:8])) + (", ..." if len(order) > 8 else "")
            yield _Prediction(f"{what} in another order ({shown})", np.take(was, np.array(order, int), axis), 1)
        elif axis == 0 and was.ndim == 1 and np.array_equal(np.sort(was), np.sort(now)) and len(slices) == len(was):
            yield _Prediction("samples in another order", now, 1)


def _fit(was: Array, now: Array) -> Iterator[_Prediction]:
    """Predict values that were multiplied and shifted, by the same numbers or by others for each column."""
    if was.shape != now.shape or was.size < _MIN_FITTED:
        return
    x, y = was.ravel(), now.ravel()
    if np.any(x):
        factor = float(x @ y / (x @ x))
        yield _Prediction(f"{_name_factor(factor)}multiplied by {factor:.4g}", was * factor, 1)
    yield _Prediction(f"shifted by {float((y - x).mean()):.4g}", was + (y - x).mean(), 1)
    factors, shifts = _fit_columns(x[:, None], y[:, None])
    words = f"multiplied by {factors[0]:.4g} and shifted by {shifts[0]:.4g}"
    yield _Prediction(words, was * factors[0] + shifts[0], 2)
    rows, width = was.size // was.shape[-1], was.shape[-1]
    if was.ndim > 1 and width > 1 and rows >= _MIN_FITTED:
        factors, shifts = _fit_columns(was.reshape(-1, width), now.reshape(-1, width))
        words = f"multiplied by {_range(factors)} and shifted by {_range(shifts)} per column"
        yield _Prediction(words, was * factors + shifts, 2 * width)


def _fit_columns(x: Array, y: Array) -> tuple[Array, Array]:
    center = x.mean(0)
    spread = ((x - center) ** 2).sum(0)
    factors = ((x - center) * (y - y.mean(0))).sum(0) / np.where(spread == 0, 1, spread)
    return factors, y.mean(0) - factors * center


def _name_factor(factor: float) -> str:
    for words, expected in (("percent for fractions: ", 100), ("fractions for percent: ", 0.01), ("negated: ", -1)):
        if abs(factor / expected - 1) < 1e-6:
            return words
    return ""


def _range(values: Array) -> str:
    return f"{values.min():.4g} to {values.max():.4g}"


_TABLE: tuple[Callable[[Array, Array], Iterator[_Prediction]], ...] = (_reduce, _apply_functions, _reorder, _fit)
