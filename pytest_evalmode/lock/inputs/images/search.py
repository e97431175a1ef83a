"""Search for the fewest steps that turn the locked images into the current ones.

Changes of the layout, the order of samples, the geometry and the channels are combined. On each combination that makes
the images similar, changes of the values are tried, and must reproduce the current images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs import image_layout, numbers, proof, sample_order
from pytest_evalmode.lock.inputs.diagnosis import RANDOM, Array, Step
from pytest_evalmode.lock.inputs.images import geometry, levels, normalization
from pytest_evalmode.lock.inputs.images.pixel_codings import Coding, has_8bit_levels, is_plausible, known_codings
from pytest_evalmode.lock.inputs.proof import Pair, Proof

_EXACT = 0.999  # correlation from which an exact change of the values is possible
_SIMILAR = 0.7  # correlation from which a change of the levels is possible
_MAX_PIXELS = 4096  # per channel, to compute the correlation
_MAX_SINGLE = 12  # images that are explained one by one
_MAX_KINDS = 3  # of steps that explain images one by one
_MARGIN = 16  # pixels at the borders of a cropped image, which depend on pixels that are not stored


class Candidate(NamedTuple):
    """Changes of all but the values, and both sets of images after them."""

    steps: list[Step]
    apply: Callable[[Array], Array]  # from the locked images to the part that `b` shows
    a: Array  # the locked images after `apply`: shape (samples, channels, rows, columns)
    b: Array  # the part of the current images to compare with: same shape
    correlation: float


def explain_images(was: Array, now: Array, *, is_cropped: bool = False) -> tuple[str, list[Step]] | None:
    """Return the noun and the steps that reproduce the current images; None if no known cause does.

    Args:
        was: The locked images: numeric, finite, in any layout that `read_as_images` knows, any range and dtype.
        now: The current images, likewise; layout, shape and dtype may differ.
        is_cropped: Whether these are only the centers of the images.
    """
    for layout_steps, old, new in image_layout.pair_layouts(was, now):
        noun = "images" if old.is_certain or new.is_certain else "inputs"
        steps = _explain(old.images, new.images, is_cropped)
        if steps is not None:
            return noun, [*layout_steps, *steps]
        if len(old.images) == len(new.images) > 1 and not layout_steps:
            steps = _explain_each(old.images, new.images, is_cropped)
            if steps is not None:
                return noun, steps
    return None


def _explain(a: Array, b: Array, is_cropped: bool, *, each: bool = False) -> list[Step] | None:
    """Return the fewest steps that turn images of shape (samples, channels, rows, columns) into others.

    Args:
        a: The locked images.
        b: The current images.
        is_cropped: Whether these are only the centers of the images.
        each: Whether this is one image of several: causes that take long are not tried.
    """
    candidates: list[Candidate] = []
    for group in (_try_channels([], lambda x: x, a, b), _try_structures(a, b)):
        found = sorted(group, key=lambda candidate: len(candidate.steps))
        for candidate in found:
            if candidate.correlation >= _EXACT:
                steps = proof.simplest(_prove_values(candidate))
                if steps is not None:
                    levelled = proof.simplest(_prove_levels(candidate, a, is_cropped)) if len(steps) > 1 else None
                    return candidate.steps + min(filter(None, [levelled, steps]), key=len, default=steps)
        candidates += found
    if a.shape == b.shape:
        steps = proof.simplest(proof.prove((*numbers.POINTWISE, *numbers.STATISTICS), Pair(a, b)))
        if steps is not None and steps[0].kind != "unit":
            return steps
    best = max((candidate.correlation for candidate in candidates), default=0.0)
    near = [candidate for candidate in candidates if 1 - candidate.correlation < 1.5 * (1 - best) + 1e-9]
    for candidate in sorted(near, key=lambda candidate: (len(candidate.steps), -candidate.correlation))[:3]:
        steps = proof.simplest(_prove_levels(candidate, a, is_cropped, local=not each))
        if steps is not None:
            return candidate.steps + steps
    return None


def _explain_each(a: Array, b: Array, is_cropped: bool) -> list[Step] | None:
    """Explain each image by steps of its own."""
    words_by_kind: dict[str, list[str]] = {}
    indices = range(len(a))[:: -(-len(a) // _MAX_SINGLE)]
    for i in indices:
        one, other = a[i : i + 1], b[i : i + 1]
        steps = [] if np.array_equal(one, other) else _explain(one, other, is_cropped, each=True)
        if steps is None:
            return None
        for step in steps:
            words_by_kind.setdefault(step.kind, []).append(step.words)
    if not 0 < len(words_by_kind) <= _MAX_KINDS:
        return None
    scope = f"{len(indices)} samples" if len(indices) == len(a) else f"{len(indices)} samples that were compared"
    steps = []
    for kind, words in words_by_kind.items():
        verb = words[0].split(" ")[0].removesuffix(":")
        how = words[0] if len(set(words)) == 1 else f"{verb} differently per sample"
        steps.append(Step(kind, f"{how} (in {len(words)} of {scope})", {"augmented": True}))
    last = steps[-1]
    return [*steps[:-1], Step(last.kind, f"{last.words}: {RANDOM}", last.details)]


def _try_channels(steps: list[Step], apply: Callable[[Array], Array], a: Array, b: Array) -> Iterator[Candidate]:
    """Yield a candidate for each change of the channels that makes the images similar.

    Args:
        steps: The steps so far.
        apply: The function that made `a` from the locked images.
        a: The locked images after the steps.
        b: The part of the current images to compare with.
    """
    for channel_steps, change in image_layout.try_channel_changes(a, b):
        x = change(a)
        if x.shape == b.shape:
            correlation = normalization.channel_correlation(*_thin_out(x, b))
            if correlation > _SIMILAR:
                yield Candidate([*steps, *channel_steps], lambda y, c=change: c(apply(y)), x, b, correlation)  # type: ignore[misc]


def _try_structures(a: Array, b: Array) -> Iterator[Candidate]:
    """Yield a candidate for each combination of sample order, geometry and channels that makes the images similar."""
    for order_steps, index in _try_orders(a, b):
        for turn_steps, turn in geometry.try_turns(a):
            x = turn(a[index])
            for place in geometry.try_placements(x, b):
                steps = [*order_steps, *turn_steps, *place.steps]
                part = b[place.new]
                if not steps or (place.steps and not geometry.is_varied(part)):
                    continue

                def apply(
                    y: Array,
                    index: list[int] = index,
                    turn: Callable[[Array], Array] = turn,
                    old: tuple[slice, ...] = place.old,
                ) -> Array:
                    return turn(y[index])[old]

                yield from _try_channels(steps, apply, x[place.old], part)


def _try_orders(a: Array, b: Array) -> Iterator[tuple[list[Step], list[int]]]:
    if len(a) == len(b):
        yield [], list(range(len(a)))
    index = sample_order.match_similar(a, b)
    if index is not None:
        yield sample_order.order_steps(len(a), index), index


def _thin_out(a: Array, b: Array) -> tuple[Array, Array]:
    """Return an evenly spaced subset of the pixels, the same of both, as float64."""
    pixels = a.shape[0] * a.shape[2] * a.shape[3]
    stride = int(np.ceil((pixels / _MAX_PIXELS) ** 0.5)) if pixels > _MAX_PIXELS else 1
    return a[:, :, ::stride, ::stride].astype(float), b[:, :, ::stride, ::stride].astype(float)


def _prove_values(candidate: Candidate) -> list[Proof]:
    """Prove that the values are equal, rounded, or recoded by a scale and a shift per channel."""
    pair = Pair(candidate.a, candidate.b)
    if np.array_equal(pair.a, pair.b) or not np.any(np.abs(pair.a - pair.b) > pair.error(lambda x: x)):
        return [Proof([], 0)]
    rounded = proof.explain_rounding(candidate.a, candidate.b)
    if rounded is not None and "rounded" in rounded.details:
        return [Proof([rounded], 0)]
    proofs = []
    order = next((step.details["channels"] for step in candidate.steps if "channels" in step.details), None)
    recodings = list(normalization.try_recodings(pair.a, pair.b, 0.02, order))  # type: ignore[arg-type]
    identity = normalization.Fit(np.ones(pair.a.shape[1]), np.zeros(pair.a.shape[1]))
    for steps, fit, coding in [([], identity, None), *recodings]:
        fitted = 0 if coding is not None or fit is identity else 2 * len(fit.scale)
        roundings = proof.reproduces(pair, fit.__call__, fitted=fitted) if fit is not identity else None
        if roundings is None and not fitted:
            step = _find_level_rounding(pair, fit, coding)
            roundings = None if step is None else [step]
        if roundings is not None:
            proofs.append(Proof([*steps, *roundings], fitted))
    return proofs


def _find_level_rounding(pair: Pair, fit: normalization.Fit, coding: Coding | None) -> Step | None:
    """Find values that lie between 8-bit levels after a recoding, and are rounded to them now."""
    codings = _level_codings(pair.b) if coding is None else [coding] * has_8bit_levels(coding, pair.b)
    for each in codings:
        old, new = (each.to_pixels(values) * 255 for values in (fit(pair.a), pair.b))
        off = np.clip(old, 0, 255) - np.round(new)
        if np.abs(off).max() > 1.001 or float(np.mean(np.abs(old - np.round(old)) > 0.01)) < 0.5:
            continue
        for words, low, high in (("rounded", -0.501, 0.501), ("rounded down", -0.001, 1.001)):
            if off.min() >= low and off.max() <= high:
                return Step("rounding", f"{words} to 8-bit levels (uint8)", {"rounded": "8-bit levels"})
    return None


def _level_codings(values: Array) -> list[Coding]:
    """Return the codings in which values are 8-bit levels."""
    simple = [each for each in known_codings(values.shape[1]) if each.family in ("unit", "bytes", "normalized")]
    return [each for each in simple if is_plausible(each, values) and has_8bit_levels(each, values)]


def _prove_levels(candidate: Candidate, a: Array, is_cropped: bool, *, local: bool = True) -> list[Proof]:
    """Prove causes that act on 8-bit levels: applied to the locked levels, they give exactly the current ones."""
    a, b = np.asarray(a, float), np.asarray(candidate.b, float)
    margin = _MARGIN if is_cropped and min(a.shape[2:]) > 3 * _MARGIN else 0
    for old in _level_codings(a):
        before = np.round(old.to_pixels(a) * 255)
        for new in sorted(_level_codings(b), key=lambda each: (each.family, each.name) != (old.family, old.name)):
            same = (old.family, old.name) == (new.family, new.name)
            if not same and not normalization.is_known(old, new):
                continue
            recoding = [] if same else [normalization.known_step(old, new)]
            after = np.round(new.to_pixels(b) * 255)
            proofs = [
                Proof([step, *recoding], fitted)
                for step, fitted in _prove_level_causes(candidate, before, after, margin, local)
            ]
            if proofs:
                return proofs
    return []


def _prove_level_causes(
    candidate: Candidate, before: Array, after: Array, margin: int, local: bool
) -> Iterator[tuple[Step, int]]:
    """Yield the causes that turn the locked levels into the current ones, and how many numbers they are fitted with."""
    moved = candidate.apply(before)
    pairs = [(levels.POINTWISE, moved, after, 0)]
    undone = _undo(candidate, before, after) if local else None
    if undone is not None:  # a filter or a compression came first
        pairs.append((levels.LOCAL, before, undone, margin))
    for causes, x, y, border in pairs:
        change = float(np.mean((x - y) ** 2)) if x.shape == y.shape else 0.0
        for cause in causes if change else ():
            for parameters in cause.recognize(x, y):
                predicted = np.round(np.clip(cause.apply(x, parameters), 0, 255))
                if predicted.shape != y.shape or np.unique(y).size <= cause.fitted(parameters):
                    continue
                off = np.abs(predicted - y)[:, :, border : -border or None, border : -border or None]
                if off.max() <= cause.residual and float(np.mean(off**2)) <= 0.01 * change:
                    yield cause.describe(x, y, parameters), cause.fitted(parameters)
                    break


def _undo(candidate: Candidate, before: Array, after: Array) -> Array | None:
    """Return the current levels in the places that they had before they were moved; None if some are not known."""
    places = candidate.apply(np.arange(before.size).reshape(before.shape))
    if places.size != before.size or places.dtype.kind != "i" or np.unique(places).size != before.size:
        return None
    undone = np.empty(before.size)
    undone[places.ravel()] = after.ravel()
    return undone.reshape(before.shape)
