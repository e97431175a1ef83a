"""The causes of changed images: a layout, moves, and then a change of the values, of the levels, or image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from pytest_evalmode.lock.causes import numbers, proof, statistics
from pytest_evalmode.lock.causes.cause import RANDOM, Array, Step
from pytest_evalmode.lock.causes.images import codings, layout, levels, moves
from pytest_evalmode.lock.causes.images.codings import Coding
from pytest_evalmode.lock.causes.search import Moved, Proof, search

_EXACT = 0.999  # correlation from which an exact change of the values is possible
_SIMILAR = 0.7  # correlation from which a change of the levels is possible
_MAX_PIXELS = 4096  # per channel, to compute the correlation
_MAX_SINGLE = 12  # images that are explained one by one
_MAX_KINDS = 3  # of steps that explain images one by one
_MARGIN = 16  # pixels at the borders of a cropped image, which depend on pixels that are not stored


def explain_images(was: Array, now: Array, *, is_cropped: bool = False) -> tuple[str, list[Step]] | None:
    """Return the noun and the steps that reproduce the current images; None if no known cause does.

    Args:
        was: The locked images: numeric, finite, in any layout that `read_as_images` knows, any range and dtype.
        now: The current images, likewise; layout, shape and dtype may differ.
        is_cropped: Whether these are only the centers of the images.
    """
    for layout_steps, old, new in layout.pair_layouts(was, now):
        noun = "images" if old.is_certain or new.is_certain else "inputs"
        steps = _explain(old.images, new.images, is_cropped)
        if steps is None and len(old.images) == len(new.images) > 1 and not layout_steps:
            steps = _explain_each(old.images, new.images, is_cropped)
        if steps is not None:
            return noun, [*layout_steps, *steps]
    return None


def _explain(a: Array, b: Array, is_cropped: bool, *, is_one_of_many: bool = False) -> list[Step] | None:
    """Search for the steps between images of shape (samples, channels, rows, columns).

    For one image of many, causes that take long are not tried.
    """
    places = partial(moves.try_places, is_cropped=is_cropped)
    of_levels = partial(_prove_levels, is_cropped=is_cropped, with_jpeg=not is_one_of_many)
    provers = (_prove_values, _prove_functions, of_levels)
    return search(a, b, (moves.try_orders, moves.try_turns, places, moves.try_channels), provers, _correlate)


def _explain_each(a: Array, b: Array, is_cropped: bool) -> list[Step] | None:
    """Explain each image by steps of its own."""
    words_by_kind: dict[str, list[str]] = {}
    indices = range(len(a))[:: -(-len(a) // _MAX_SINGLE)]
    for i in indices:
        one, other = a[i : i + 1], b[i : i + 1]
        steps = [] if np.array_equal(one, other) else _explain(one, other, is_cropped, is_one_of_many=True)
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
    return [*steps[:-1], replace(steps[-1], words=f"{steps[-1].words}: {RANDOM}")]


def _correlate(a: Array, b: Array) -> float:
    """Return the smallest correlation of a channel: 1.0 if a scale and a shift explain everything; 0.0 if it is low."""
    if a.shape != b.shape or not a.size:
        return 0.0
    pixels = a.shape[0] * a.shape[2] * a.shape[3]
    step = int(np.ceil((pixels / _MAX_PIXELS) ** 0.5)) if pixels > _MAX_PIXELS else 1
    axes = (0, 2, 3)
    x, y = (each[:, :, ::step, ::step].astype(float) for each in (a, b))
    x, y = x - x.mean(axes, keepdims=True), y - y.mean(axes, keepdims=True)
    norms = np.sqrt((x**2).sum(axes) * (y**2).sum(axes))
    constant = norms == 0
    if constant.all():
        return float(np.array_equal(a, b))
    correlations = np.abs(np.where(constant, 1.0, (x * y).sum(axes) / np.where(constant, 1, norms)))
    return float(correlations.min()) if correlations.min() > _SIMILAR else 0.0


def _prove_values(moved: Moved) -> Iterator[Proof]:
    """Prove that the values are equal, rounded, or coded differently."""
    if moved.similarity < _EXACT:
        return
    pair = proof.Pair(moved.was, moved.now)
    if not np.any(np.abs(pair.a - pair.b) > pair.error(lambda x: x)):
        yield Proof(())
        return
    rounded = proof.explain_rounding(moved.was, moved.now)
    if rounded is not None and "rounded" in rounded.details:
        yield Proof((rounded,))
    # After fitted numbers, rounding to whole ones is left to the causes that act on levels.
    yield from (each for each in proof.prove((codings.RECODED,), pair) if len(each.steps) == 1 or not each.fitted)
    yield from _prove_pixels(moved)


def _prove_functions(moved: Moved) -> Iterator[Proof]:
    """Prove a function of the values, or statistics of their own."""
    if not moved.steps:
        causes = (*numbers.FUNCTIONS, numbers.CLIPPED, numbers.THRESHOLD, *statistics.STATISTICS)
        yield from proof.prove(causes, proof.Pair(moved.was, moved.now))


def _prove_pixels(moved: Moved) -> Iterator[Proof]:
    """Prove causes that act on levels, of pixels that lie between levels now."""
    coding = codings.codings_of(moved.was)[:1]
    if coding and codings.has_levels(coding[0], moved.was) and not codings.has_levels(coding[0], moved.now):
        x, y = (coding[0].to_levels(each).astype(each.dtype) for each in (moved.was, moved.now))
        yield from proof.prove(levels.UNROUNDED, proof.Pair(x, y))


def _prove_levels(moved: Moved, *, is_cropped: bool, with_jpeg: bool) -> Iterator[Proof]:
    """Prove causes that act on 8-bit levels, before the moves or after them, and perhaps a change of the coding."""
    yield from _prove_pixels(moved)
    for old in codings.codings_of(moved.was):
        for new in codings.codings_of(moved.now):
            step = codings.change_of_coding(old, new)
            is_same = (old.family, old.name) == (new.family, new.name)
            if not codings.has_levels(new, moved.now) or (step is None and not is_same):
                continue
            recoding = () if is_same or step is None else (step,)
            for each in _prove_coded(moved, old, new, is_cropped, with_jpeg):
                yield Proof((*each.steps, *recoding), each.fitted)
    if moved.was.shape == moved.now.shape and not any(
        codings.has_levels(each, moved.was) for each in codings.codings_of(moved.was)
    ):
        for own in codings.fitted_codings(moved.was, moved.now):
            yield from _prove_coded(moved, own, own, is_cropped, with_jpeg)


def _prove_coded(moved: Moved, old: Coding, new: Coding, is_cropped: bool, with_jpeg: bool) -> Iterator[Proof]:
    x, y = old.to_levels(moved.was), np.round(new.to_levels(moved.now))
    if not codings.has_levels(old, moved.was):
        yield from proof.prove((levels.ROUNDED,), proof.Pair(x, y, levels=True))
        return
    yield from proof.prove(levels.POINTWISE, proof.Pair(np.round(x), y, levels=True))
    start = moved.origin[0]
    undone = _undo(moved, start.shape, y) if with_jpeg else None
    if undone is not None:  # compression came before the moves
        margin = _MARGIN if is_cropped and min(start.shape[2:]) > 3 * _MARGIN else 0
        before = np.round(old.to_levels(start))
        jpeg = replace(levels.JPEG, apply=_inside(margin, undone, levels.JPEG.apply))
        yield from proof.prove((jpeg,), proof.Pair(before, undone, levels=True))


def _undo(moved: Moved, shape: tuple[int, ...], after: Array) -> Array | None:
    """Return the current levels in the places that they had before the moves; None if some are not known."""
    size = int(np.prod(shape))
    places = moved.move(np.arange(size).reshape(shape))
    undone = np.full(size, np.nan)
    if places.size == after.size == size and places.dtype.kind == "i":
        undone[places.ravel()] = after.ravel()
    return None if np.isnan(undone).any() else undone.reshape(shape)


def _inside(margin: int, known: Array, apply: Callable[[Array, object], Array]) -> Callable[[Array, object], Array]:
    """Return a function that applies a cause, except near the borders."""

    def apply_inside(levels: Array, parameters: object) -> Array:
        out, applied = known.copy(), apply(levels, parameters)
        if applied.shape != out.shape:
            return applied
        part = (..., slice(margin, -margin or None), slice(margin, -margin or None))
        out[part] = applied[part]
        return out

    return apply_inside
