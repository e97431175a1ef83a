"""Causes that change each number alone: units, functions, limits, classes. For tables, series, labels and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Cause, Step, count_distinct, describe_line
from pytest_evalmode.lock.causes.proof import Pair, fit_lines, prove

_FACTORS = {
    1000.0: "thousandths, or kilo",
    100.0: "percent, or centi",
    255.0: "8-bit levels",
    32768.0: "16-bit levels",
    float(np.pi / 180): "degrees and radians",
    float(np.log(10)): "natural and decimal logarithms",
    float(np.log(10) / 10): "natural logarithms and decibels",
    -1.0: "the sign changed",
}
_MIN_PER_CLASS = 2  # samples, or pixels, of each class that was renumbered


def same_shape(recognize: Callable[[Array, Array], Iterator[Any]]) -> Callable[[Array, Array], Iterator[Any]]:
    """Propose nothing for arrays of different shapes or without any spread."""
    return lambda a, b: recognize(a, b) if a.shape == b.shape and (a.size == 1 or np.ptp(b)) else iter(())


# A factor and a shift for all values: parameters are (factor, shift, what it is).


def _known_lines(a: Array, b: Array) -> Iterator[tuple[float, float, str]]:
    used = (a != 0) & (b != 0)
    if used.any():
        fitted = float(np.median(b[used] / a[used]))
        # One number proves a factor of 100 if only one side can be a fraction.
        is_percent = (np.abs(a).max() <= 1) != (np.abs(b).max() <= 1)
        factors = _FACTORS if count_distinct(b) > 2 else {100.0: _FACTORS[100.0]} if is_percent else {}
        for factor, name in factors.items():
            for text, value in ((f"{factor:.5g}", factor), (f"1/{factor:.5g}", 1 / factor)):
                if abs(fitted - value) <= 1e-6 * abs(value):
                    yield value, 0.0, f"{text} ({name})"


def _fitted_lines(a: Array, b: Array) -> Iterator[tuple[float, float, str]]:
    """Propose one factor, one shift, and both."""
    if spread := float((a * a).sum()):
        yield float((a * b).sum()) / spread, 0.0, ""
    yield 1.0, float(np.median(b - a)), ""
    scale, shift = fit_lines(a, b)
    yield float(scale.item()), float(shift.item()), ""


def _describe_line(_: Array, __: Array, line: tuple[float, float, str]) -> Step:
    scale, shift, name = line
    return Step("unit", f"multiplied by {name}" if name else describe_line(scale, shift))


# Functions without parameters, applied or left out.


def function_causes(
    applied: str, left_out: str, function: Callable[[Array], Array], distinct: int = 3
) -> tuple[Cause, ...]:
    """Return the causes that apply a function to values, and that leave it out (if there are words for that)."""

    def recognize(a: Array, b: Array) -> Iterator[None]:
        if count_distinct(b) >= distinct:
            yield None

    cause = Cause(recognize, lambda a, _: function(a), lambda a, b, _: Step("function", applied))

    def recognize_left_out(a: Array, b: Array) -> Iterator[Array]:
        if a.shape == b.shape and prove((cause,), Pair(b.astype(np.float32), a.astype(np.float32))):
            yield b

    # The function gives the locked values from the current ones; its result may not have an inverse.
    reverse = Cause(recognize_left_out, lambda a, b: b, lambda a, b, _: Step("function", left_out))
    return (cause, reverse) if left_out else (cause,)


def _passed(name: str, function: Callable[[Array], Array]) -> tuple[Cause, ...]:
    return function_causes(f"passed through {name}", f"no longer passed through {name}", function)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


FUNCTIONS = (
    *_passed("the natural logarithm", np.log),
    *_passed("the logarithm of 1 + x (log1p)", np.log1p),
    *_passed("the decimal logarithm", np.log10),
    *_passed("the exponential", np.exp),
    *_passed("the square root", np.sqrt),
    *_passed("the sigmoid (probabilities for logits)", lambda x: 1 / (1 + np.exp(-x))),
    *_passed("the hyperbolic tangent", np.tanh),
    *_passed("the absolute value", np.abs),
)
# For outputs of shape (samples, ..., classes).
OF_CLASSES = (
    *function_causes("probabilities (softmax) for logits", "logits for probabilities (softmax)", _softmax),
    *function_causes("log-probabilities for logits", "logits for log-probabilities", lambda x: np.log(_softmax(x))),
    *function_causes(
        "normalized to length 1",
        "no longer normalized to length 1",
        lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
    ),
    *function_causes("class indices (argmax) for scores", "", lambda x: x.argmax(-1).astype(float), 2),
)


def _limits(a: Array, b: Array) -> Iterator[tuple[float, float]]:
    if a.min() < b.min() or a.max() > b.max():
        yield float(b.min()), float(b.max())


CLIPPED = Cause(
    same_shape(_limits),
    lambda a, p: np.clip(a, *p),
    lambda a, b, p: Step("clipped", f"clipped to {p[0]:.4g}..{p[1]:.4g}"),
    lambda _: 2,
)
KNOWN_LINES = Cause(same_shape(_known_lines), lambda a, p: a * p[0] + p[1], _describe_line)
FITTED_LINES = replace(
    KNOWN_LINES, recognize=same_shape(_fitted_lines), fitted=lambda p: int(p[0] != 1) + int(p[1] != 0)
)
POINTWISE = (KNOWN_LINES, *FUNCTIONS, FITTED_LINES, CLIPPED)


# Classes under other numbers, in lists of labels and in maps: parameters are the new number of each that changed.


def _class_mapping(a: Array, b: Array) -> Iterator[dict[int, int]]:
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    mapping = {int(old): int(new) for old, new in pairs.T}
    changed = {old: new for old, new in mapping.items() if old != new}
    is_frequent = all(n >= _MIN_PER_CLASS for (old, new), n in zip(pairs.T, counts, strict=True) if old != new)
    if len(mapping) == pairs.shape[1] and changed and is_frequent and len(set(mapping.values())) > 1:
        yield changed


def _renumber(a: Array, mapping: dict[int, int]) -> Array:
    values, at = np.unique(a, return_inverse=True)
    return np.asarray([mapping.get(int(value), int(value)) for value in values], a.dtype)[at].reshape(a.shape)


def _describe_classes(_: Array, __: Array, mapping: dict[int, int]) -> Step:
    shown = ", ".join(f"{old} -> {new}" for old, new in list(mapping.items())[:4]) + (", ..." * (len(mapping) > 4))
    words = f"renumbered in {len(mapping)} class{'es' * (len(mapping) > 1)} ({shown})"
    merged = ", some of them merged" if len(set(mapping.values())) < len(mapping) else ""
    return Step("classes", f"{words}{merged}")


CLASSES = Cause(same_shape(_class_mapping), _renumber, _describe_classes, len, is_confirmed=True)
