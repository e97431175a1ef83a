"""Compares the batches of one name with their lock entry, array by array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pytest_evalmode.lock.arrays.named_batches import NamedBatches
from pytest_evalmode.lock.arrays.packing import restore_values
from pytest_evalmode.lock.arrays.pictures import draw_pictures
from pytest_evalmode.lock.arrays.stream import Stream, kept_indices, matches
from pytest_evalmode.lock.arrays.tolerance import Tolerance, find_difference
from pytest_evalmode.lock.causes import describe_change, diagnose, is_tokens
from pytest_evalmode.lock.causes.cause import Array
from pytest_evalmode.lock.lock_file import Entry
from pytest_evalmode.trace import LockChange

if TYPE_CHECKING:
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

    path: str
    locked: Entry
    stream: Stream
    samples: Samples
    """The stored samples and digests of all arrays."""

    @property
    def old_digests(self) -> list[int]:
        return [int(digest) for digest in self.samples.get(f"{self.path}#digests", ())]

    @cached_property
    def entry(self) -> Entry:
        return self.stream.entry()

    @property
    def old(self) -> Array | None:
        """The stored samples, in the dtype that they had."""
        stored = self.samples.get(self.path)
        return None if stored is None else restore_values(stored, self.locked["dtype"])

    @cached_property
    def all_values(self) -> tuple[Array | None, Array | None]:
        """All values as locked and as they are now; None if not all are stored."""
        new, indices = self.stream.stored()
        return (self.old if kept_indices(self.locked) is None else None), (new if indices is None else None)

    @cached_property
    def common(self) -> tuple[Array, Array, list[int] | None] | None:
        """The samples that are stored of both, and which they are; None for all. None if there are none."""
        old, (new, indices), kept = self.old, self.stream.stored(), kept_indices(self.locked)
        if old is None or not new.size:
            return None
        if str(self.stream.shape) == self.locked["shape"] and old.shape[1:] != new.shape[1:]:
            return None  # cropped to other sizes
        if indices is None and kept is None:
            return old, new, None
        which_old, which_new = (
            np.arange(len(values)) if which is None else np.asarray(which[: len(values)], int)
            for values, which in ((old, kept), (new, indices))
        )
        both, at_old, at_new = np.intersect1d(which_old, which_new, return_indices=True)
        return (old[at_old], new[at_new], both.tolist()) if len(both) else None


def compare(batches: NamedBatches, load_samples: Callable[[], Samples]) -> LockChange | None:
    """Return what changed in the batches of one name; None if nothing did. Samples are loaded if an array differs."""
    locked = batches.locked
    parts = [f"{path} is missing" for path in locked if path not in batches.streams]
    parts += [f"{path} is new" for path in batches.streams if path not in locked]
    differences = [Difference("", "; ".join(parts))] if parts else []
    differences += _find_differences(batches, load_samples)
    if not differences:
        return None
    # A single array needs no path.
    shown = [each.words if len(locked) == 1 or not each.path else f"{each.path}: {each.words}" for each in differences]
    more = f" (and {len(shown) - _MAX_SHOWN} more)" if len(shown) > _MAX_SHOWN else ""
    headline = f"{'; '.join(shown[:_MAX_SHOWN])}{more}"
    finding = f"{batches.name}: {headline}"
    details: dict[str, object] = {each.path: each.details for each in differences if each.details is not None}
    if batches.kind == "outputs":
        headline, details = finding, {"differences": [each.longer for each in differences if each.longer]}
    pictures = {each.path: each.picture for each in differences if each.picture}
    return LockChange(batches.kind, batches.name, headline, finding, batches.at, details=details, pictures=pictures)


def _find_differences(batches: NamedBatches, load_samples: Callable[[], Samples]) -> Iterator[Difference]:
    """Yield how each array differs that is in both."""
    locked = batches.locked
    for path, stream in batches.streams.items():
        if path not in locked or matches(locked[path], entry := stream.entry()):
            continue
        other = next((name for name in locked if name != path and matches(locked[name], entry)), None)
        if other is not None:
            words = f"has the values locked for {other}"
            yield Difference(path, words, f"{path} {words}")
            continue
        pair = Pair(path, locked[path], stream, load_samples())
        try:
            compare_array = _compare_input if batches.kind == "inputs" else _compare_output
            difference = compare_array(pair, batches.tolerance)
        except Exception as error:  # samples that do not fit the entry: a difference all the same
            words = f"values differ; the difference cannot be described: {type(error).__name__}: {error}"
            difference = Difference(path, words, words)
        if difference is not None:
            yield difference


def _compare_output(pair: Pair, tolerance: Tolerance) -> Difference | None:
    """Return how an output differs; None within its tolerance."""
    old, new = pair.all_values
    if pair.stream.is_exact and (old is None or new is None):
        words = _describe_digests(pair)
        return Difference(pair.path, words, words)
    beyond = find_difference(pair.locked, pair.entry, old, new, tolerance)
    if beyond is None:
        return None
    words, longer = beyond
    if old is not None and new is not None:
        try:  # what the values turned into, such as logits into probabilities
            change = describe_change(old, new)
            words += "" if change is None else f": {change}"
        except Exception as error:  # the difference itself is known
            words += f"; the change cannot be described: {type(error).__name__}: {error}"
    return Difference(pair.path, words, longer)


def _compare_input(pair: Pair, tolerance: Tolerance) -> Difference | None:
    """Return how an input differs, with a diagnosis; None within its tolerance."""
    locked, entry, stream = pair.locked, pair.entry, pair.stream
    if not stream.is_exact and find_difference(locked, entry, *pair.all_values, tolerance) is None:
        return None
    diagnosis = None
    if pair.common is not None:
        old, new, indices = pair.common
        diagnosis = diagnose(
            old,
            new,
            indices=indices,
            digests=(pair.old_digests, stream.digests),
            counts=(locked["samples"], stream.count),
            shapes=(tuple(map(int, re.findall(r"\d{1,18}", locked["shape"]))), stream.shape),
            rtol=tolerance[0] or 0.0,
            atol=tolerance[1] or 0.0,
        )
    if diagnosis is None:
        return Difference(pair.path, _describe_digests(pair), "", {})
    has_new_dtype = locked["dtype"] != entry["dtype"] and "dtype" not in diagnosis.kinds
    new_dtype = f"; dtype {locked['dtype']} -> {entry['dtype']}" if has_new_dtype else ""
    details = {"kinds": list(diagnosis.kinds), **diagnosis.details}
    is_drawn = "text" not in (locked["dtype"], stream.dtype) and not is_tokens(old, new)
    picture = draw_pictures(old, new) if is_drawn else None
    return Difference(pair.path, f"{diagnosis.headline}{new_dtype}", "", details, picture)


def _describe_digests(pair: Pair) -> str:
    """Describe a difference without stored samples."""
    for name in ("dtype", "shape", "samples"):
        if pair.locked[name] != pair.entry[name]:
            return f"values differ: {name} {pair.locked[name]} -> {pair.entry[name]}"
    old, new = pair.old_digests, pair.stream.digests
    differing = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if differing:
        first = "" if len(old) >= pair.stream.count else f"the first {len(old)} of "
        shown = ", ".join(map(str, differing[:5])) + (", ..." if len(differing) > 5 else "")
        return f"{len(differing)} of {first}{pair.stream.count} samples differ ({shown})"
    return f"values differ after the first {len(old)} samples" if old and new else "values differ"
