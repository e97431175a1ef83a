"""Search for the fewest steps that turn the locked images into the current ones.

First changes of the layout, the order of samples, the geometry and the channels are combined. On each combination that
makes the images similar, changes of the values are tried: exact ones first, then lossy ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs import image_layout, sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps
from pytest_evalmode.lock.inputs.images import augmentation, compression, geometry, normalization, resampling, rounding
from pytest_evalmode.lock.inputs.images.pixel_codings import Coding, coding_of

Dtype = np.dtype[Any]
_EXACT = 0.999  # correlation from which an exact change of the values is possible
_SIMILAR = 0.7  # correlation from which a lossy change is possible
_MAX_PIXELS = 4096  # per channel, to compute the correlation


class Candidate(NamedTuple):
    """Some steps, and the locked and the current images after these steps."""

    steps: list[Step]
    a: Array  # the locked images after the steps: float64, shape (samples, channels, rows, columns)
    b: Array  # the part of the current images to compare with: same dtype and shape
    correlation: float


class Explanation(NamedTuple):
    """Steps that explain a difference, and the error that remains after them."""

    steps: list[Step]
    residual: float


def explain_images(was: Array, now: Array) -> Diagnosis | None:
    """Return the diagnosis of images, if a known cause explains the difference.

    Args:
        was: The locked images: numeric, finite, in any layout that `read_as_images` knows, any range and dtype.
        now: The current images, likewise; layout, shape and dtype may differ.
    """
    candidates: list[Candidate] = []
    noun = "images"
    for steps, old, new in image_layout.pair_layouts(was, now):
        noun = "images" if old.is_certain or new.is_certain else "inputs"
        a, b = (np.asarray(each.images, np.float64) for each in (old, new))
        for group in (list(_try_channels(steps, a, b)), list(_try_structures(steps, a, b))):
            exact = _explain_exactly(group, was.dtype, now.dtype)
            if exact is not None:
                return diagnosis_of_steps(noun, exact.steps, residual=exact.residual, **_dtypes(was, now))
            candidates += group
        placements = None if steps else augmentation.find_placement_per_image(a, b)
        if placements is not None:
            return diagnosis_of_steps(noun, placements, **_dtypes(was, now))
    lossy = _explain_lossily(candidates)
    if lossy is None:
        return None
    return diagnosis_of_steps(noun, lossy.steps, residual=lossy.residual, **_dtypes(was, now))


def _dtypes(was: Array, now: Array) -> dict[str, object]:
    return {} if was.dtype == now.dtype else {"dtype": (str(was.dtype), str(now.dtype))}


def _try_channels(steps: list[Step], a: Array, b: Array) -> Iterator[Candidate]:
    """Yield a candidate for each change of the channels that makes the images similar."""
    for channel_steps, x in image_layout.try_channel_changes(a, b):
        if x.shape == b.shape:
            correlation = normalization.channel_correlation(*_thin_out(x, b))
            if correlation > _SIMILAR:
                yield Candidate([*steps, *channel_steps], x, b, correlation)


def _try_structures(steps: list[Step], a: Array, b: Array) -> Iterator[Candidate]:
    """Yield a candidate for each combination of sample order, geometry and channels that makes the images similar."""
    for order_steps, x in _try_orders(a, b):
        for turn_steps, y in geometry.try_turns(x):
            for shift_steps, u, v in geometry.try_shifts(y, b):
                structure = [*steps, *order_steps, *turn_steps, *shift_steps]
                if len(structure) > len(steps):
                    yield from _try_channels(structure, u, v)


def _try_orders(a: Array, b: Array) -> Iterator[tuple[list[Step], Array]]:
    if len(a) == len(b):
        yield [], a
    index = sample_order.match_similar(a, b)
    if index is not None:
        yield sample_order.order_steps(len(a), index), a[index]


def _thin_out(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the same evenly spaced subset of the pixels of both."""
    pixels = a.shape[0] * a.shape[2] * a.shape[3]
    if pixels <= _MAX_PIXELS:
        return a, b
    stride = int(np.ceil((pixels / _MAX_PIXELS) ** 0.5))
    return a[:, :, ::stride, ::stride], b[:, :, ::stride, ::stride]


def _explain_exactly(candidates: list[Candidate], was: Dtype, now: Dtype) -> Explanation | None:
    """Return the fewest steps after which a recoding and a rounding reproduce the current images."""
    for candidate in sorted(candidates, key=lambda each: len(each.steps)):
        if candidate.correlation >= _EXACT:
            values = _explain_values(candidate, was, now)
            if values is not None:
                return Explanation(candidate.steps + values.steps, values.residual)
    return None


def _explain_values(candidate: Candidate, was: Dtype, now: Dtype) -> Explanation | None:
    """Find out whether a rounding, a recoding, both or neither explain the values of a candidate."""
    a, b = candidate.a, candidate.b
    if np.array_equal(a, b):
        return Explanation([], 0.0)
    for step, residual in rounding.try_roundings(a, b, 0.0, coding_of(b)):
        return Explanation([step], residual)
    then_rounded: list[Explanation] = []
    for steps, fit, coding in normalization.try_recodings(a, b, 0.02, _channel_order(candidate)):
        recoded = fit(a)
        error = _rounding_error(a, b, fit, was, now)
        residual = float(np.abs(recoded - b).max())
        if residual <= error:
            narrow = now == np.float16 and was != now
            step = Step("rounding", "rounded to float16", {"rounded": "float16"})
            return Explanation([*steps, step] if narrow else steps, residual)
        # A recoding without rounding, found later, has fewer steps than one with rounding.
        if coding is not None:
            then_rounded += [
                Explanation([*steps, step], left) for step, left in rounding.try_roundings(recoded, b, error, coding)
            ]
    return then_rounded[0] if then_rounded else None


def _channel_order(candidate: Candidate) -> tuple[int, ...] | None:
    """Return the new order of the channels if a step swaps them."""
    orders = (step.details["channels"] for step in candidate.steps if "channels" in step.details)
    return next(orders, None)  # type: ignore[return-value]


def _rounding_error(a: Array, b: Array, fit: normalization.Fit, was: Dtype, now: Dtype) -> float:
    """Return the error that rounding in both dtypes may cause: a few units in the last place."""
    scale, shift = float(np.abs(fit.scale).max()), float(np.abs(fit.shift).max())
    largest = float(np.abs(b).max()) + shift
    return 8 * (_epsilon(now) * largest + scale * _epsilon(was) * (float(np.abs(a).max()) + shift / scale))


def _epsilon(dtype: Dtype) -> float:
    return float(np.finfo(dtype).eps) / 2 if dtype.kind == "f" else 1e-12


def _explain_lossily(candidates: list[Candidate]) -> Explanation | None:
    """Explain the most similar candidates by a curve, a compression or a resampling."""
    if not candidates:
        return None
    best = max(each.correlation for each in candidates)
    near = [each for each in candidates if 1 - each.correlation < 1.5 * (1 - best) + 1e-9]
    for candidate in sorted(near, key=lambda each: (len(each.steps), -each.correlation))[:3]:
        lossy = _explain_loss(candidate)
        if lossy is not None:
            return Explanation(candidate.steps + lossy.steps, lossy.residual)
    return None


def _explain_loss(candidate: Candidate) -> Explanation | None:
    a, b, channel_order = candidate.a, candidate.b, _channel_order(candidate)
    coding = coding_of(a, channel_order)
    tolerance = 0.6 / 255 * (coding.scale.max() if coding is not None else np.ptp(b))
    explained = normalization.find_channel_scale(a, b, tolerance, channel_order)
    for find_pointwise_change in (
        rounding.find_fewer_levels,
        augmentation.find_scale_per_image,
        normalization.find_color_matrix,
        normalization.find_value_curve,
    ):
        explained = explained or find_pointwise_change(a, b, tolerance)
    if explained is not None:
        return Explanation([explained[0]], explained[1])
    # Compression and resampling act on pixels: undo the most likely recoding first.
    tries: list[tuple[float, list[Step], Array]] = [(1.0, [], b)]
    for steps, fit, new in normalization.try_recodings(a, b, 0.15, channel_order):
        inverse = normalization.Fit(1 / fit.scale, -fit.shift / fit.scale)
        # A known recoding must reduce the difference by this factor to be reported, a fitted one by a larger factor.
        tries.append((4.0 if new is not None and steps else 8.0 if steps else 1.0, steps, inverse(b)))
    _, steps, b = min(tries, key=lambda each: float(np.mean((each[2] - a) ** 2)) * each[0])
    x, y = (_to_levels(each, a, coding) for each in (a, b))
    jpeg = compression.find_jpeg(x, y)
    if jpeg is not None:
        return Explanation([*steps, jpeg[0]], float(np.sqrt(np.mean((jpeg[1] - y) ** 2))))
    detail = resampling.find_resampling(x, y)
    return None if detail is None else Explanation([*steps, detail], float(np.sqrt(np.mean((x - y) ** 2))))


def _to_levels(values: Array, a: Array, coding: Coding | None) -> Array:
    """Scale values to levels in 0..255, by the range of the locked images if their coding is unknown."""
    if coding is not None:
        return np.asarray(coding.to_pixels(values) * 255)
    low, high = float(a.min()), float(a.max())
    return np.asarray((values - low) / (high - low or 1) * 255)
