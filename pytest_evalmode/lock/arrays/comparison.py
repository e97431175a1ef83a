"""Comparison of the batches of one name with their lock entry, array by array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_evalmode.lock.arrays import array_differences, tolerance
from pytest_evalmode.lock.arrays.array_entries import matches
from pytest_evalmode.lock.arrays.named_batches import NamedBatches
from pytest_evalmode.lock.lock_file import Entry
from pytest_evalmode.trace import LockChange

if TYPE_CHECKING:
    import numpy as np

    Samples = Mapping[str, np.ndarray[Any, Any]]

_MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Difference:
    """How one array differs; without a path, which arrays are missing or new."""

    path: str
    words: str
    longer: str = ""
    details: Mapping[str, object] | None = None
    picture: Mapping[str, object] | None = None


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


def _headline(differences: Sequence[_Difference], *, single_array: bool) -> str:
    """Return the first few differences as text, without a path if there is only one array."""
    parts = [each.words if single_array or not each.path else f"{each.path}: {each.words}" for each in differences]
    more = f" (and {len(parts) - _MAX_SHOWN} more)" if len(parts) > _MAX_SHOWN else ""
    return f"{'; '.join(parts[:_MAX_SHOWN])}{more}"


def _missing_or_new(batches: NamedBatches, locked: Mapping[str, Entry]) -> Iterator[_Difference]:
    parts = [f"{path} is missing" for path in locked if path not in batches.streams]
    parts += [f"{path} is new" for path in batches.streams if path not in locked]
    if parts:
        yield _Difference("", "; ".join(parts))


def _differences(
    batches: NamedBatches, locked: Mapping[str, Entry], load_samples: Callable[[], Samples]
) -> Iterator[_Difference]:
    """Yield the differences of the arrays that are both in the batches and in the lock entry."""
    compare_arrays = _compare_inputs if batches.kind == "inputs" else _compare_outputs
    for path, stream in batches.streams.items():
        if path in locked and not matches(locked[path], stream.entry()):
            difference = _find_exchanged(batches, path, locked) or compare_arrays(
                batches, path, locked[path], load_samples()
            )
            if difference is not None:
                yield difference


def _find_exchanged(batches: NamedBatches, path: str, locked: Mapping[str, Entry]) -> _Difference | None:
    """Return a difference if the array has exactly the values that are locked for another one."""
    entry = batches.streams[path].entry()
    other = next((name for name in locked if name != path and matches(locked[name], entry)), None)
    words = f"has the values locked for {other}"
    return None if other is None else _Difference(path, words, f"{path} {words}")


def _compare_outputs(batches: NamedBatches, path: str, locked: Entry, samples: Samples) -> _Difference | None:
    """Return how an output differs; None within its tolerance."""
    beyond = _find_beyond_tolerance(batches, path, locked, samples)
    return None if beyond is None else _Difference(path, *beyond)


def _compare_inputs(batches: NamedBatches, path: str, locked: Entry, samples: Samples) -> _Difference | None:
    """Return how an input differs, with its diagnosis; None within a tolerance that the test has set."""
    limits = {limit: value for limit, value in batches.tolerance.items() if value is not None}
    if limits and _find_beyond_tolerance(batches, path, locked, samples) is None:
        return None
    stream, values, digests = batches.streams[path], samples.get(path), samples.get(f"{path}#digests")
    words, details = array_differences.describe_difference(locked, stream, values, digests, **limits)
    picture = array_differences.draw_difference(locked, stream, values)
    return _Difference(path, words, details=details, picture=picture)


def _find_beyond_tolerance(batches: NamedBatches, path: str, locked: Entry, samples: Samples) -> tuple[str, str] | None:
    stream, values, sketch = batches.streams[path], samples.get(path), samples.get(f"{path}#sketch")
    return tolerance.find_difference(locked, stream, values, sketch, batches.tolerance)
