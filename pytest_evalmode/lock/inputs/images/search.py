"""Which steps, one after another, take images to what they are now: the fewest that do, each tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs import image_layout, sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps
from pytest_evalmode.lock.inputs.images import augmentation, compression, geometry, normalization, resampling, rounding
from pytest_evalmode.lock.inputs.images.pixel_codings import Coding, coding_of

Dtype = np.dtype[Any]
_SURE = 0.999  # the likeness from which a scale and a shift are worth trying
_LIKE = 0.7  # and that from which loss is
_PROBE = 4096  # pixels of a channel that the first look takes


class Candidate(NamedTuple):
    """Some of the steps, and both sides where they are done."""

    steps: list[Step]
    a: Array
    b: Array
    likeness: float


def explain_images(was: Array, now: Array) -> Diagnosis | None:
    """The diagnosis of images, if a known cause explains the difference."""
    candidates: list[Candidate] = []
    noun = "images"
    for steps, old, new in image_layout.pair_layouts(was, now):
        noun = "images" if old.is_certain or new.is_certain else "inputs"
        a, b = (np.asarray(each.images, np.float64) for each in (old, new))
        for found in (list(_coloured(steps, a, b)), list(_structures(steps, a, b))):
            exact = _first_exact(found, was.dtype, now.dtype)
            if exact is not None:
                return diagnosis_of_steps(noun, exact.steps, residual=exact.residual, **_dtypes(was, now))
            candidates += found
        each = None if steps else augmentation.find_placement_per_image(a, b)
        if each is not None:
            return diagnosis_of_steps(noun, each, **_dtypes(was, now))
    lossy = _first_lossy(candidates)
    return (
        None if lossy is None else diagnosis_of_steps(noun, lossy.steps, residual=lossy.residual, **_dtypes(was, now))
    )


def _dtypes(was: Array, now: Array) -> dict[str, object]:
    return {} if was.dtype == now.dtype else {"dtype": (str(was.dtype), str(now.dtype))}


class Found(NamedTuple):
    """Steps that explain, and what they leave."""

    steps: list[Step]
    residual: float


def _coloured(steps: list[Step], a: Array, b: Array) -> Iterator[Candidate]:
    """The channels alone; likeness from a look at some pixels."""
    for recoloured, x in image_layout.try_channel_changes(a, b):
        if x.shape == b.shape:
            like = normalization.channel_correlation(*_probe(x, b))
            if like > _LIKE:
                yield Candidate([*steps, *recoloured], x, b, like)


def _structures(steps: list[Step], a: Array, b: Array) -> Iterator[Candidate]:
    """Samples, positions and channels, in all combinations."""
    for ordered, x in _ordered(a, b):
        for turned, y in geometry.try_turns(x):
            for moved, u, v in geometry.try_shifts(y, b):
                structure = [*steps, *ordered, *turned, *moved]
                if len(structure) > len(steps):
                    yield from _coloured(structure, u, v)


def _ordered(a: Array, b: Array) -> Iterator[tuple[list[Step], Array]]:
    if len(a) == len(b):
        yield [], a
    index = sample_order.match_similar(a, b)
    if index is not None:
        yield sample_order.order_steps(len(a), index), a[index]


def _probe(a: Array, b: Array) -> tuple[Array, Array]:
    """The same few pixels of both, as one row."""
    pixels = a.shape[0] * a.shape[2] * a.shape[3]
    if pixels <= _PROBE:
        return a, b
    stride = int(np.ceil((pixels / _PROBE) ** 0.5))
    return a[:, :, ::stride, ::stride], b[:, :, ::stride, ::stride]


def _first_exact(candidates: list[Candidate], was: Dtype, now: Dtype) -> Found | None:
    """The fewest steps after which a scale, a shift and a rounding leave nothing."""
    for each in sorted(candidates, key=lambda each: len(each.steps)):
        if each.likeness >= _SURE:
            found = _values(each, was, now)
            if found is not None:
                return Found(each.steps + found.steps, found.residual)
    return None


def _values(candidate: Candidate, was: Dtype, now: Dtype) -> Found | None:
    """What was done to the values alone."""
    a, b = candidate.a, candidate.b
    if np.array_equal(a, b):
        return Found([], 0.0)
    for step, left in rounding.try_roundings(a, b, 0.0, coding_of(b)):
        return Found([step], left)
    then_rounded: list[Found] = []
    for steps, fit, code in normalization.try_recodings(a, b, 0.02, _order(candidate)):
        there = fit(a)
        slack = _slack(a, b, fit, was, now)
        left = float(np.abs(there - b).max())
        if left <= slack:
            narrow = now == np.float16 and was != now
            step = Step("rounding", "rounded to float16", {"rounded": "float16"})
            return Found([*steps, step] if narrow else steps, left)
        if code is not None:
            then_rounded += [
                Found([*steps, step], over) for step, over in rounding.try_roundings(there, b, slack, code)
            ]
    return then_rounded[0] if then_rounded else None


def _order(candidate: Candidate) -> tuple[int, ...] | None:
    """How the channels were swapped, if they were."""
    return next((step.details["channels"] for step in candidate.steps if "channels" in step.details), None)  # type: ignore[return-value]


def _slack(a: Array, b: Array, fit: normalization.Fit, was: Dtype, now: Dtype) -> float:
    """How far rounding in the two types may put a value off: a few units in the last place."""
    scale, shift = float(np.abs(fit.scale).max()), float(np.abs(fit.shift).max())
    largest = float(np.abs(b).max()) + shift
    return 8 * (_unit(now) * largest + scale * _unit(was) * (float(np.abs(a).max()) + shift / scale))


def _unit(dtype: Dtype) -> float:
    return float(np.finfo(dtype).eps) / 2 if dtype.kind == "f" else 1e-12


def _first_lossy(candidates: list[Candidate]) -> Found | None:
    """A curve, compression or resampling, after the steps that leave the images most alike."""
    if not candidates:
        return None
    best = max(each.likeness for each in candidates)
    near = [each for each in candidates if 1 - each.likeness < 1.5 * (1 - best) + 1e-9]
    for each in sorted(near, key=lambda each: (len(each.steps), -each.likeness))[:3]:
        found = _lossy(each)
        if found is not None:
            return Found(each.steps + found.steps, found.residual)
    return None


def _lossy(candidate: Candidate) -> Found | None:
    a, b, order_ = candidate.a, candidate.b, _order(candidate)
    code = coding_of(a, order_)
    level = 0.6 / 255 * (code.scale.max() if code is not None else np.ptp(b))
    found = normalization.find_channel_scale(a, b, level, order_)
    for pointwise in (
        rounding.find_fewer_levels,
        augmentation.find_scale_per_image,
        normalization.find_color_matrix,
        normalization.find_value_curve,
    ):
        found = found or pointwise(a, b, level)
    if found is not None:
        return Found([found[0]], found[1])
    tries: list[tuple[float, list[Step], Array]] = [(1.0, [], b)]
    for steps, fit, new in normalization.try_recodings(a, b, 0.15, order_):
        back = normalization.Fit(1 / fit.scale, -fit.shift / fit.scale)
        # What is named has to bring the images much nearer than they are without, and what is not, more so.
        tries.append((4.0 if new is not None and steps else 8.0 if steps else 1.0, steps, back(b)))
    _, steps, b = min(tries, key=lambda each: float(np.mean((each[2] - a) ** 2)) * each[0])
    x, y = (_levels(each, a, code) for each in (a, b))
    jpeg = compression.find_jpeg(x, y)
    if jpeg is not None:
        return Found([*steps, jpeg[0]], float(np.sqrt(np.mean((jpeg[1] - y) ** 2))))
    detail = resampling.find_resampling(x, y)
    return None if detail is None else Found([*steps, detail], float(np.sqrt(np.mean((x - y) ** 2))))


def _levels(values: Array, a: Array, code: Coding | None) -> Array:
    """In 0..255, as far as that is known."""
    if code is not None:
        return np.asarray(code.to_pixels(values) * 255)
    low, high = float(a.min()), float(a.max())
    return np.asarray((values - low) / (high - low or 1) * 255)
