"""The causes of changed images: a layout, moves, and then a change of the values, of the levels, or image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.causes import numbers, proof, statistics
from pytest_evalmode.lock.causes.cause import RANDOM, Array, Step
from pytest_evalmode.lock.causes.images import codings, layout, levels, moves
from pytest_evalmode.lock.causes.images.codings import Coding
from pytest_evalmode.lock.causes.proof import Proof, simplest

_MAX_MOVES = 2
_MAX_NEAR = 3  # moved images on which the causes that take long are tried
_EXACT = 0.999  # correlation from which an exact change of the values is possible
_SIMILAR = 0.7  # correlation from which a change of the levels is possible
_MAX_PIXELS = 4096  # per channel, to compute the correlation
_MAX_SINGLE = 12  # images that are explained one by one
_MAX_KINDS = 3  # of steps that explain images one by one


class Moved(NamedTuple):
    """The locked images after moves, beside the current ones."""

    was: Array
    now: Array
    similarity: float
    """The correlation of both; 0.0 if no cause can explain the rest."""
    steps: tuple[Step, ...] = ()
    kinds: int = 0
    """How many kinds of moves were already tried."""


def explain_images(was: Array, now: Array, *, is_cropped: bool = False) -> tuple[str, list[Step]] | None:
    """Return the noun and the steps that reproduce the current images; None if no known cause does.

    Layout, shape and dtype may differ; with `is_cropped`, these are only the centers of the images.
    """
    for layout_steps, old, new in layout.pair_layouts(was, now):
        noun = "images" if old.is_certain or new.is_certain else "inputs"
        steps = _search(old.images, new.images, is_cropped)
        if steps is None and len(old.images) == len(new.images) > 1 and not layout_steps:
            steps = _explain_each(old.images, new.images, is_cropped)
        if steps is not None:
            return noun, [*layout_steps, *steps]
    return None


def _search(a: Array, b: Array, is_cropped: bool, *, is_one_of_many: bool = False) -> list[Step] | None:
    """Try no move, one move and two moves; the first that leaves equal values or a proven cause wins.

    Causes that take long are only tried after the moves that leave the most similar images.
    """
    reached, tried = [Moved(a, b, _correlate(a, b))], list[Moved]()
    for _ in range(_MAX_MOVES + 1):
        steps = _prove(_prove_values, reached)
        if steps is not None:
            return steps
        tried += reached
        reached = [each for before in reached for each in _move(before, is_cropped)]
    best = max(each.similarity for each in tried)
    near = [each for each in tried if 1 - each.similarity < 1.5 * (1 - best) + 1e-9]
    near = sorted(near, key=lambda each: (len(each.steps), -each.similarity))[:_MAX_NEAR]
    prove_slowly = partial(_prove_slowly, is_cropped=is_cropped, with_jpeg=not is_one_of_many)
    return next((steps for each in near if (steps := _prove(prove_slowly, [each])) is not None), None)


def _prove(prover: Callable[[Moved], Iterable[Proof]], reached: Iterable[Moved]) -> list[Step] | None:
    proofs = ((each, proof) for each in reached if each.similarity > 0 for proof in prover(each))
    return simplest([Proof((*moved.steps, *proof.steps), proof.fitted) for moved, proof in proofs])


def _move(before: Moved, is_cropped: bool) -> Iterator[Moved]:
    try_turns, try_shifts = (partial(each, is_cropped=is_cropped) for each in (moves.try_turns, moves.try_shifts))
    kinds: Sequence[moves.Moves] = (try_turns, try_shifts, moves.try_channels)
    for i, try_moves in list(enumerate(kinds, 1))[before.kinds :]:
        for step, was, now in try_moves(before.was, before.now):
            yield Moved(was, now, _correlate(was, now), (*before.steps, step), i)


def _explain_each(a: Array, b: Array, is_cropped: bool) -> list[Step] | None:
    """Explain each image by steps of its own."""
    words_by_kind: dict[str, list[str]] = {}
    indices = range(len(a))[:: -(-len(a) // _MAX_SINGLE)]
    for i in indices:
        one, other = a[i : i + 1], b[i : i + 1]
        steps = [] if np.array_equal(one, other) else _search(one, other, is_cropped, is_one_of_many=True)
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
        steps.append(Step(kind, f"{how} (in {len(words)} of {scope})"))
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
    if rounded is not None and rounded.words.startswith("rounded"):
        yield Proof((rounded,))
    # After fitted numbers, rounding to whole ones is left to the causes that act on levels.
    yield from (each for each in proof.prove((codings.RECODED,), pair) if len(each.steps) == 1 or not each.fitted)
    yield from _prove_pixels(moved)


def _prove_pixels(moved: Moved) -> Iterator[Proof]:
    """Prove causes that act on levels, of pixels that lie between levels now."""
    coding = codings.codings_of(moved.was)[:1]
    if coding and codings.has_levels(coding[0], moved.was) and not codings.has_levels(coding[0], moved.now):
        x, y = (coding[0].to_levels(each).astype(each.dtype) for each in (moved.was, moved.now))
        yield from proof.prove(levels.UNROUNDED, proof.Pair(x, y))


def _prove_slowly(moved: Moved, *, is_cropped: bool, with_jpeg: bool) -> Iterator[Proof]:
    """Prove functions of the values, statistics of their own, and causes that act on 8-bit levels.

    After a cause that acts on levels, the coding may have changed too.
    """
    if not moved.steps:
        causes = (*numbers.FUNCTIONS, numbers.CLIPPED, *statistics.STATISTICS)
        yield from proof.prove(causes, proof.Pair(moved.was, moved.now))
    yield from _prove_pixels(moved)
    for old, new, recoding in _pair_codings(moved.was, moved.now):
        x, y = np.round(old.to_levels(moved.was)), np.round(new.to_levels(moved.now))
        causes = levels.POINTWISE + (levels.jpeg(y, is_cropped),) * with_jpeg
        for each in proof.prove(causes, proof.Pair(x, y, levels=True)):
            yield Proof((*each.steps, *recoding), each.fitted)


def _pair_codings(was: Array, now: Array) -> Iterator[tuple[Coding, Coding, tuple[Step, ...]]]:
    """Yield the codings in which images have levels, before and now, and the step between them."""
    before, after = ([each for each in codings.codings_of(x) if codings.has_levels(each, x)] for x in (was, now))
    for old, new in product(before, after):
        step = codings.change_of_coding(old, new)
        if old is new or step is not None:
            yield old, new, () if step is None else (step,)
    if not before:
        for own in codings.fitted_codings(was, now):
            if codings.has_levels(own, was) and codings.has_levels(own, now):
                yield own, own, ()
