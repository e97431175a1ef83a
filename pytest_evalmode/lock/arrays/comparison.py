"""Compares the batches of one name with their lock entry, array by array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.arrays.named_batches import NamedBatches
from pytest_evalmode.lock.arrays.packing import restore_values
from pytest_evalmode.lock.arrays.pictures import draw_pictures
from pytest_evalmode.lock.arrays.stream import Stream, kept_indices, matches
from pytest_evalmode.lock.arrays.tolerance import find_difference
from pytest_evalmode.lock.causes import describe_change, diagnose, is_tokens
from pytest_evalmode.lock.lock_file import Entry
from pytest_evalmode.trace import LockChange

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Samples = Mapping[str, Array]

_MAX_SHOWN = 3


@dataclass(frozen=True)
class Difference:
    """How one array differs; without a path, which arrays are missing or new."""

    path: str
    words: str
    longer: str = ""
    details: Mapping[str, object] | None = None
    picture: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Pair:
    """A locked array and this run's."""

    locked: Entry
    stream: Stream
    stored: Array | None
    """The stored samples, as they are in the file."""
    digests: Array | None

    @cached_property
    def entry(self) -> Entry:
        return self.stream.entry()

    @cached_property
    def all_values(self) -> tuple[Array | None, Array | None]:
        """All values as locked and as they are now; None if not all are stored."""
        new, indices = self.stream.stored()
        old = None if self.stored is None else restore_values(self.stored, self.locked["dtype"])
        return (old if kept_indices(self.locked) is None else None), (new if indices is None else None)

    @cached_property
    def common(self) -> tuple[Array, Array, list[int] | None] | None:
        """The samples that are stored of both, and which they are; None for all. None if there are none."""
        new, indices = self.stream.stored()
        kept = kept_indices(self.locked)
        if self.stored is None or not new.size:
            return None
        old = restore_values(self.stored, self.locked["dtype"])
        if str(self.stream.shape) == self.locked["shape"] and old.shape[1:] != new.shape[1:]:
            return None  # cropped to other sizes
        if indices is None and kept is None:
            return old, new, None
        place_old = {i: n for n, i in enumerate(range(len(old)) if kept is None else kept[: len(old)])}
        place_new = {i: n for n, i in enumerate(range(len(new)) if indices is None else indices)}
        both = sorted(place_old.keys() & place_new.keys())
        return (old[[place_old[i] for i in both]], new[[place_new[i] for i in both]], both) if both else None


def compare(
    batches: NamedBatches, locked: Mapping[str, Entry], load_samples: Callable[[], Samples]
) -> LockChange | None:
    """Compare batches with the locked arrays.

    Args:
        batches: All batches that the test passed under one name.
        locked: The locked arrays, by path.
        load_samples: Returns the stored samples; only called if an array differs.

    Returns:
        What changed; None if nothing did.
    """
    differences = [*_missing_or_new(batches, locked), *_differences(batches, locked, load_samples)]
    if not differences:
        return None
    headline = _headline(differences, single_array=len(locked) == 1)
    kind, name, at = batches.kind, batches.name, batches.at
    finding = f"{name}: {headline}"
    if kind == "outputs":
        longer = [each.longer for each in differences if each.longer]
        return LockChange(kind, name, finding, finding, at, details={"differences": longer})
    details = {each.path: each.details for each in differences if each.details is not None}
    pictures = {each.path: each.picture for each in differences if each.picture}
    return LockChange(kind, name, headline, finding, at, details=details, pictures=pictures)


def _headline(differences: Sequence[Difference], *, single_array: bool) -> str:
    """Return the first few differences; a single array needs no path."""
    parts = [each.words if single_array or not each.path else f"{each.path}: {each.words}" for each in differences]
    more = f" (and {len(parts) - _MAX_SHOWN} more)" if len(parts) > _MAX_SHOWN else ""
    return f"{'; '.join(parts[:_MAX_SHOWN])}{more}"


def _missing_or_new(batches: NamedBatches, locked: Mapping[str, Entry]) -> Iterator[Difference]:
    parts = [f"{path} is missing" for path in locked if path not in batches.streams]
    parts += [f"{path} is new" for path in batches.streams if path not in locked]
    if parts:
        yield Difference("", "; ".join(parts))


def _differences(
    batches: NamedBatches, locked: Mapping[str, Entry], load_samples: Callable[[], Samples]
) -> Iterator[Difference]:
    """Yield how each array differs that is in both."""
    for path, stream in batches.streams.items():
        if path not in locked or matches(locked[path], entry := stream.entry()):
            continue
        other = next((name for name in locked if name != path and matches(locked[name], entry)), None)
        if other is not None:
            words = f"has the values locked for {other}"
            yield Difference(path, words, f"{path} {words}")
            continue
        samples = load_samples()
        pair = Pair(locked[path], stream, samples.get(path), samples.get(f"{path}#digests"))
        difference = _compare(batches, path, pair)
        if difference is not None:
            yield difference


def _compare(batches: NamedBatches, path: str, pair: Pair) -> Difference | None:
    """Return how an array differs; None within its tolerance."""
    limits = {limit: value for limit, value in batches.tolerance.items() if value is not None}
    if not pair.stream.is_exact or (batches.kind == "outputs" and all(each is not None for each in pair.all_values)):
        beyond = find_difference(pair.locked, pair.entry, *pair.all_values, batches.tolerance)
        if beyond is None or batches.kind == "outputs":
            return None if beyond is None else Difference(path, f"{beyond[0]}{_describe_change(pair)}", beyond[1])
    try:
        return _describe_input(path, pair, limits) if batches.kind == "inputs" else _describe_exact_output(path, pair)
    except (
        Exception
    ) as error:  # samples that do not fit the entry, or an error in a diagnosis: a difference all the same
        return Difference(path, f"values differ; the difference cannot be described: {type(error).__name__}: {error}")


def _describe_input(path: str, pair: Pair, limits: Mapping[str, float]) -> Difference:
    locked, entry, stream = pair.locked, pair.entry, pair.stream
    if pair.common is not None:
        old, new, indices = pair.common
        diagnosis = diagnose(
            old,
            new,
            indices=indices,
            digests_was=_to_list(pair.digests),
            digests_now=stream.digests,
            count_was=locked["samples"],
            count_now=stream.count,
            shape_was=tuple(map(int, re.findall(r"\d{1,18}", locked["shape"]))),
            shape_now=stream.shape,
            rtol=limits.get("rtol", 0.0),
            atol=limits.get("atol", 0.0),
        )
        if diagnosis is not None:
            has_new_dtype = locked["dtype"] != entry["dtype"] and "dtype" not in diagnosis.kinds
            new_dtype = f"; dtype {locked['dtype']} -> {entry['dtype']}" if has_new_dtype else ""
            details = {"kinds": list(diagnosis.kinds), **diagnosis.details}
            return Difference(path, f"{diagnosis.headline}{new_dtype}", "", details, _picture(pair, old, new))
    return Difference(path, _describe_digests(pair), "", {})


def _describe_exact_output(path: str, pair: Pair) -> Difference:
    words = _describe_digests(pair)
    return Difference(path, words, words)


def _describe_change(pair: Pair) -> str:
    """Say what the values turned into, such as logits into probabilities; empty if that is not recognized."""
    old, new = pair.all_values
    try:
        words = None if old is None or new is None else describe_change(old, new)
    except Exception as error:  # the difference itself is known
        return f"; the change cannot be described: {type(error).__name__}: {error}"
    return "" if words is None else f": {words}"


def _describe_digests(pair: Pair) -> str:
    """Describe a difference without stored samples."""
    for name in ("dtype", "shape", "samples"):
        if pair.locked[name] != pair.entry[name]:
            return f"values differ: {name} {pair.locked[name]} -> {pair.entry[name]}"
    old, new = _to_list(pair.digests), pair.stream.digests
    differing = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if differing:
        shown = ", ".join(map(str, differing[:5])) + (", ..." if len(differing) > 5 else "")
        first = "" if len(old) >= pair.stream.count else f"the first {len(old)} of "
        return f"{len(differing)} of {first}{pair.stream.count} samples differ ({shown})"
    return f"values differ after the first {len(old)} samples" if old and new else "values differ"


def _picture(pair: Pair, old: Array, new: Array) -> Mapping[str, object] | None:
    """Return pictures of an array that differs; None for text and tokens."""
    if "text" in (pair.locked["dtype"], pair.stream.dtype) or is_tokens(old, new):
        return None
    return draw_pictures(old, new)


def _to_list(digests: Array | None) -> list[int]:
    return [] if digests is None else [int(digest) for digest in digests]
