"""What became of inputs, said in the words of the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_MANY = 64  # values from which on a PSNR says anything


@dataclass(frozen=True)
class Step:
    """One thing that was done to the inputs; `words` go on from "images were"."""

    kind: str
    words: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """How inputs differ from those that were validated."""

    headline: str
    kinds: tuple[str, ...]  # empty if nothing explains the difference
    details: Mapping[str, object]


def diagnosis_of_steps(noun: str, steps: Sequence[Step], **details: object) -> Diagnosis:
    """Several steps are said together, in the order in which they were found."""
    words = [step.words for step in steps]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    merged = {key: value for step in steps for key, value in step.details.items()}
    return Diagnosis(f"{noun} were {listed}", tuple(step.kind for step in steps), {**merged, **details})


def unrecognized_difference(noun: str, was: Array, now: Array) -> Diagnosis:
    """Where and how far, where no known cause explains it."""
    if was.shape != now.shape:
        headline = f"{noun} differ: shape {now.shape}, not {was.shape}, and no known cause explains it"
        return Diagnosis(headline, (), {"was": was.shape, "now": now.shape})
    if was.dtype.kind not in "biufc" or now.dtype.kind not in "biufc":
        differ = np.asarray(was != now)
        where = tuple(int(i) for i in np.argwhere(differ)[0])
        share = float(differ.mean())
        shown = ""
        if was.dtype.kind in "US" and now.dtype.kind in "US":
            a_, b_ = str(was[where]), str(now[where])
            same = next((i for i, (x, y) in enumerate(zip(a_, b_, strict=False)) if x != y), min(len(a_), len(b_)))
            start = max(0, same - 10)
            shown = f": {b_[start : start + 40]!r}, not {a_[start : start + 40]!r}"
        headline = f"{noun} differ, and no known cause explains it: in {share:.0%}, first at {where}{shown}"
        return Diagnosis(headline, (), {"share": share, "first": where})
    if not was.size:
        return Diagnosis(f"{noun} are empty, and of dtype {now.dtype}, not {was.dtype}", (), {"was": was.shape})
    complex_ = was.dtype.kind == "c" or now.dtype.kind == "c"
    a, b = (np.asarray(each, np.complex128 if complex_ else np.float64) for each in (was, now))
    bad = np.isfinite(a) != np.isfinite(b)
    with np.errstate(invalid="ignore"):
        far = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(b - a))
    far = np.where(np.isnan(far), np.inf, far)
    where = tuple(int(i) for i in np.unravel_index(int(far.argmax()), far.shape))
    share, most = float((far > 0).mean()), float(far.max())
    details: dict[str, object] = {"share": share, "max": most, "where": where, "was": a[where], "now": b[where]}
    told_ = f"{_percent(share)} of the values, by at most {most:.3g}, at {where}"
    if bad.any():
        details["not finite"] = int(bad.sum())
        told_ = f"{_percent(share)} of the values, {int(bad.sum())} of them in being finite, first at {where}"
    elif not complex_ and a.size >= _MANY:
        details["psnr"] = psnr(a, b)
        told_ += f" (PSNR {details['psnr']:.1f} dB)"
    if a.ndim and len(a) > 1:
        others = [i for i, row in enumerate(far) if np.any(row > 0)]
        details["samples"] = tuple(others[:32])
        told_ += f", in {len(others)} of {len(a)} samples" if len(others) < len(a) else ""
    return Diagnosis(f"{noun} differ, and no known cause explains it: {told_}", (), details)


def psnr(a: Array, b: Array) -> float:
    """Signal to noise in dB, where the signal's peak is the range of `a`."""
    peak, noise = float(a.max() - a.min()), float(np.mean((a - b) ** 2))
    return float(10 * np.log10(peak**2 / noise)) if noise and peak else float("inf") if not noise else 0.0


def format_numbers(values: npt.ArrayLike) -> str:
    """`0.485` or `(0.485, 0.456, 0.406)`: one number if all are the same."""
    flat = np.atleast_1d(np.asarray(values, float))
    if np.allclose(flat, flat[0], rtol=1e-6, atol=1e-9):
        return f"{flat[0]:.4g}"
    shown = [f"{each:.4g}" for each in flat[:4]] + ["..."] * (len(flat) > 4)
    return f"({', '.join(shown)})"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
