"""What a cause is, and the diagnosis that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NOT_BEFORE = "; they were not before"  # at the end of a step's words, it moves to the end of the headline
RANDOM = "a random augmentation left on?"


@dataclass(frozen=True)
class Step:
    """One change; `words` continue the sentence "images were ..."."""

    kind: str
    words: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """How values differ from their lock entry."""

    headline: str
    kinds: tuple[str, ...]  # of the steps; empty if the cause is not recognized
    details: Mapping[str, object]


@dataclass(frozen=True)
class Cause:
    """A row in the table of one kind of data.

    Attributes:
        recognize: Returns the parameters worth trying for the locked and the current values, the likeliest first.
        apply: Returns the locked values after the cause. It is named only if these are the current ones.
        describe: Returns the step, from the locked and the current values and the parameters.
        fitted: Returns how many numbers the parameters take from the current values.
        is_confirmed: Whether `recognize` makes sure that enough values confirm the parameters.
        residual: The error that may remain besides float rounding: in levels, or as a share of the range of values.
    """

    recognize: Callable[[Any, Any], Iterable[Any]]
    apply: Callable[[Any, Any], Any]
    describe: Callable[[Any, Any, Any], Step]
    fitted: Callable[[Any], int] = lambda _: 0
    is_confirmed: bool = False
    residual: float = 0.0


def join_steps(noun: str, steps: Sequence[Step], suffix: str = "") -> Diagnosis:
    """Return one diagnosis for all steps: "images were flipped left to right and normalized twice"."""
    words = [step.words.removesuffix(NOT_BEFORE) for step in steps]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    details = {key: value for step in steps for key, value in step.details.items()}
    if any(step.words.endswith(NOT_BEFORE) for step in steps):
        headline = f"{noun} are now {listed}{suffix}{NOT_BEFORE}"
    else:
        headline = f"{noun} {'' if steps[0].words.startswith('differ') else 'were '}{listed}{suffix}"
    return Diagnosis(headline, tuple(step.kind for step in steps), details)


def difference(was: Array, now: Array) -> Array:
    """Return the absolute difference of two arrays of one shape; infinite where only one of them is finite or NaN."""
    wide = np.complex128 if "c" in (was.dtype.kind, now.dtype.kind) else np.float64
    a, b = np.asarray(was, wide), np.asarray(now, wide)
    with np.errstate(invalid="ignore"):
        change = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(b - a))
    if was.dtype.kind in "iu" and now.dtype.kind in "iu":
        change = np.maximum(change, was != now)  # float64 cannot hold all of them
    return np.where(np.isnan(change), np.inf, change)


def count_distinct(values: Array) -> int:
    """Return how many different values there are among a few thousand of them, which is fast."""
    return len(np.unique(values.ravel()[:: max(1, values.size >> 12)]))


def describe_unrecognized(
    noun: str, was: Array, now: Array, scope: str = "", *, indices: Sequence[int] | None = None, is_tokens: bool = False
) -> Diagnosis:
    """Say what differs, where and by how much.

    Args:
        noun: What the values are.
        was, now: The samples that are stored, of shape (samples, ...), or a scalar.
        scope: In how many of all samples the values differ; empty if in all.
        indices: Which of all samples are stored; None for all.
        is_tokens: The values are token ids, whose distances mean nothing.
    """
    start = f"{noun} differ, cause not recognized: "
    if was.shape != now.shape:
        return Diagnosis(f"{start}shape {now.shape}, not {was.shape}", (), {"was": was.shape, "now": now.shape})
    if not was.size:
        return Diagnosis(f"{noun} are empty and have dtype {now.dtype}, not {was.dtype}", (), {"was": was.shape})
    is_text = was.dtype.kind not in "biufc" or now.dtype.kind not in "biufc"
    change = np.asarray(was != now, float) if is_text else difference(was, now)
    at = int(np.flatnonzero(change)[0] if is_tokens else change.argmax())
    where = position = tuple(int(i) for i in np.unravel_index(at, change.shape))
    if indices is not None:
        where = (indices[position[0]], *position[1:])
    share, most = float((change > 0).mean()), float(change.max())
    details: dict[str, object] = {"share": share, "max": most, "where": where}
    if change.ndim:
        differing = np.flatnonzero((change > 0).reshape(len(change), -1).any(1))[:32].tolist()
        details["samples"] = tuple(differing if indices is None else [indices[i] for i in differing])
    values = f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
    values += " of the values" if indices is None else " of the stored values"
    if was.dtype == now.dtype == np.uint8 and most == 1:  # which does not prove that it is rounding
        words = f"{noun} differ by at most 1 level in {values}: rounding, or noise of its size; "
        return Diagnosis(f"{words}pass rtol and atol if you accept it{f' ({scope})' if scope else ''}", (), details)
    if is_text:
        words = f"{values}, first at {where}{_excerpts(str(was[position]), str(now[position]))}"
    elif np.isinf(most) and (not_finite := int((np.isfinite(was) != np.isfinite(now)).sum())):
        words = f"{values}, {not_finite} of them NaN or infinite only before or only now, first at {where}"
    elif is_tokens:
        words = f"{values}, first at {where}"
    else:
        words = f"{values}, by at most {most:.3g} at {where}"
    return Diagnosis(f"{start}{words}{f', {scope}' if scope else ''}", (), details)


def _excerpts(old: str, new: str) -> str:
    """Return both texts where they begin to differ."""
    same = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), min(len(old), len(new)))
    shown = slice(max(0, same - 10), max(0, same - 10) + 40)
    return f": {new[shown]!r}, not {old[shown]!r}"


def describe_line(scale: float, shift: float) -> str:
    """Return "multiplied by 2", "shifted by 1" or both; a scale of 1.0 and a shift of 0.0 are left out."""
    words = [f"multiplied by {scale:.6g}"] if scale != 1 or not shift else []
    return " and ".join([*words, f"shifted by {shift:.6g}"] if shift else words)


def format_numbers(values: npt.ArrayLike) -> str:
    """Format numbers as `(0.485, 0.456, 0.406)`, or as `0.485` if all are the same."""
    flat = np.ravel(np.asarray(values, float))
    if np.allclose(flat, flat[0], rtol=1e-6, atol=1e-9):
        return f"{flat[0]:.4g}"
    shown = [f"{each:.4g}" for each in flat[:4]] + ["..."] * (len(flat) > 4)
    return f"({', '.join(shown)})"
