"""All that has come under one name, against what was locked of it."""

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

    Kept = Mapping[str, np.ndarray[Any, Any]]

_MOST_TOLD = 3


@dataclass(frozen=True, slots=True)
class _Difference:
    """How one array differs; or, without a path, which arrays there are."""

    path: str
    words: str
    longer: str = ""
    details: Mapping[str, object] | None = None
    picture: Mapping[str, object] | None = None


def compare(flow: NamedBatches, was: Mapping[str, Entry], kept: Callable[[], Kept]) -> LockChange | None:
    """What is not as it was locked; None if all is.

    `was` are the arrays that were locked, by path, and `kept` is asked for what was kept of them.
    """
    found = [*_missing_or_new(flow, was), *_differences(flow, was, kept)]
    if not found:
        return None
    headline = _headline(found, alone=len(was) == 1)
    finding = f"{flow.name}: {headline}"
    if flow.kind == "outputs":
        longer = [each.longer for each in found if each.longer]
        return LockChange(flow.kind, flow.name, finding, finding, flow.at, details={"differences": longer})
    details = {each.path: each.details for each in found if each.details is not None}
    pictures = {each.path: each.picture for each in found if each.picture}
    return LockChange(flow.kind, flow.name, headline, finding, flow.at, details=details, pictures=pictures)


def _headline(found: Sequence[_Difference], *, alone: bool) -> str:
    """The first few differences; of an array that is `alone`, without its path."""
    told = [each.words if alone or not each.path else f"{each.path}: {each.words}" for each in found]
    more = f" (and {len(told) - _MOST_TOLD} more)" if len(told) > _MOST_TOLD else ""
    return f"{'; '.join(told[:_MOST_TOLD])}{more}"


def _missing_or_new(flow: NamedBatches, was: Mapping[str, Entry]) -> Iterator[_Difference]:
    moved = [f"{path} is missing" for path in was if path not in flow.streams]
    moved += [f"{path} is new" for path in flow.streams if path not in was]
    if moved:
        yield _Difference("", "; ".join(moved))


def _differences(flow: NamedBatches, was: Mapping[str, Entry], kept: Callable[[], Kept]) -> Iterator[_Difference]:
    """How each array differs that was locked and has come."""
    apart = _input if flow.kind == "inputs" else _output
    for path, stream in flow.streams.items():
        if path in was and not matches(was[path], stream.entry()):
            found = _mistaken(flow, path, was) or apart(flow, path, was[path], kept())
            if found is not None:
                yield found


def _mistaken(flow: NamedBatches, path: str, was: Mapping[str, Entry]) -> _Difference | None:
    """An array that is what another one was."""
    now = flow.streams[path].entry()
    other = next((name for name in was if name != path and matches(was[name], now)), None)
    return None if other is None else _Difference(path, f"what was {other}", f"{path} is what {other} was")


def _output(flow: NamedBatches, path: str, was: Entry, kept: Kept) -> _Difference | None:
    """An output that is further from what it was than its tolerance allows."""
    far = _far(flow, path, was, kept)
    return None if far is None else _Difference(path, *far)


def _input(flow: NamedBatches, path: str, was: Entry, kept: Kept) -> _Difference | None:
    """An input that is another, if not within a tolerance that was asked for; with the diagnosis."""
    limits = {limit: value for limit, value in flow.tolerance.items() if value is not None}
    if limits and _far(flow, path, was, kept) is None:
        return None
    now, values = flow.streams[path], kept.get(path)
    words, details = array_differences.describe_difference(was, now, values, kept.get(f"{path}#digests"), **limits)
    return _Difference(path, words, details=details, picture=array_differences.draw_difference(was, now, values))


def _far(flow: NamedBatches, path: str, was: Entry, kept: Kept) -> tuple[str, str] | None:
    return tolerance.find_difference(
        was, flow.streams[path], kept.get(path), kept.get(f"{path}#sketch"), flow.tolerance
    )
