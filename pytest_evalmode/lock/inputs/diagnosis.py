"""Diagnoses of changed inputs, and their wording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_MIN_PSNR_VALUES = 64  # with fewer values, a PSNR is meaningless
NOT_BEFORE = "; they were not before"  # at the end of a step's words, it moves to the end of the headline


@dataclass(frozen=True)
class Step:
    """One change of the inputs; `words` continue the sentence "images were ..."."""

    kind: str
    words: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """How inputs differ from their lock entry."""

    headline: str
    kinds: tuple[str, ...]  # of the steps; empty if the cause is not recognized
    details: Mapping[str, object]


def diagnosis_of_steps(noun: str, steps: Sequence[Step], **details: object) -> Diagnosis:
    """Join the steps to one diagnosis, in order: "images were flipped left to right and normalized twice"."""
    words = [step.words.removesuffix(NOT_BEFORE) for step in steps]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    merged = {key: value for step in steps for key, value in step.details.items()}
    if any(step.words.endswith(NOT_BEFORE) for step in steps):
        headline = f"{noun} are now {listed}{NOT_BEFORE}"
    else:
        headline = f"{noun} were {listed}"
    return Diagnosis(headline, tuple(step.kind for step in steps), {**merged, **details})


def unrecognized_difference(noun: str, was: Array, now: Array) -> Diagnosis:
    """Describe what differs, where and by how much, if no known cause explains it.

    Args:
        noun: The plural noun that starts the headline, such as "images".
        was: The locked array, of any shape and dtype.
        now: The current array, of any shape and dtype.
    """
    if was.shape != now.shape:
        headline = f"{noun} differ, cause not recognized: shape {now.shape}, not {was.shape}"
        return Diagnosis(headline, (), {"was": was.shape, "now": now.shape})
    if was.dtype.kind not in "biufc" or now.dtype.kind not in "biufc":
        differ = np.asarray(was != now)
        where = tuple(int(i) for i in np.argwhere(differ)[0])
        share = float(differ.mean())
        shown = ""
        if was.dtype.kind in "US" and now.dtype.kind in "US":
            old, new = str(was[where]), str(now[where])
            same = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), min(len(old), len(new)))
            start = max(0, same - 10)
            shown = f": {new[start : start + 40]!r}, not {old[start : start + 40]!r}"
        headline = f"{noun} differ, cause not recognized: {share:.0%} of them, first at {where}{shown}"
        return Diagnosis(headline, (), {"share": share, "first": where})
    if not was.size:
        return Diagnosis(f"{noun} are empty and have dtype {now.dtype}, not {was.dtype}", (), {"was": was.shape})
    complex_ = was.dtype.kind == "c" or now.dtype.kind == "c"
    a, b = (np.asarray(each, np.complex128 if complex_ else np.float64) for each in (was, now))
    one_finite = np.isfinite(a) != np.isfinite(b)
    with np.errstate(invalid="ignore"):
        change = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(b - a))
    # An infinite change wins argmax below, so that a NaN is what the headline locates.
    change = np.where(np.isnan(change), np.inf, change)
    where = tuple(int(i) for i in np.unravel_index(int(change.argmax()), change.shape))
    share, most = float((change > 0).mean()), float(change.max())
    details: dict[str, object] = {"share": share, "max": most, "where": where, "was": a[where], "now": b[where]}
    words = f"{_percent(share)} of the values, by at most {most:.3g} at {where}"
    if one_finite.any():
        details["not finite"] = int(one_finite.sum())
        finite = f"{int(one_finite.sum())} of them NaN or infinite only before or only now"
        words = f"{_percent(share)} of the values, {finite}, first at {where}"
    elif not complex_ and a.size >= _MIN_PSNR_VALUES:
        details["psnr"] = psnr(a, b)
        words += f" (PSNR {details['psnr']:.1f} dB)"
    if a.ndim and len(a) > 1:
        differing = [i for i, row in enumerate(change) if np.any(row > 0)]
        details["samples"] = tuple(differing[:32])
        words += f", in {len(differing)} of {len(a)} samples" if len(differing) < len(a) else ""
    return Diagnosis(f"{noun} differ, cause not recognized: {words}", (), details)


def psnr(a: Array, b: Array) -> float:
    """Return the peak signal-to-noise ratio of two arrays in dB.

    Args:
        a: The reference: a float array of any shape and range. Its range (max - min) is the peak.
        b: A float array of the same shape.
    """
    peak, noise = float(a.max() - a.min()), float(np.mean((a - b) ** 2))
    return float(10 * np.log10(peak**2 / noise)) if noise and peak else float("inf") if not noise else 0.0


def format_numbers(values: npt.ArrayLike) -> str:
    """Format numbers as `(0.485, 0.456, 0.406)`, or as `0.485` if all are the same."""
    flat = np.atleast_1d(np.asarray(values, float))
    if np.allclose(flat, flat[0], rtol=1e-6, atol=1e-9):
        return f"{flat[0]:.4g}"
    shown = [f"{each:.4g}" for each in flat[:4]] + ["..."] * (len(flat) > 4)
    return f"({', '.join(shown)})"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
