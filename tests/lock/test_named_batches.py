"""Comparing the batches of one name with their lock entry, without a lock file."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from pytest_evalmode.lock.arrays.comparison import compare
from pytest_evalmode.lock.arrays.named_batches import NamedBatches
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.recomputed_metrics import describe_recomputed_metrics
from pytest_evalmode.lock.arrays.stream import Budget
from pytest_evalmode.trace import LockChange

MAX_BYTES = 1 << 17
EXACT = None, None
LOOSE = 0.0, 0.1
A, B = np.arange(6.0).reshape(3, 2), -np.arange(3.0)


def named(kind: str, *batches: Any, tolerance: Any = EXACT, locked: NamedBatches | None = None) -> NamedBatches:
    entries = {} if locked is None else locked.entry()["arrays"]
    added = NamedBatches(kind, "x", None, tolerance, batches[0], Budget(MAX_BYTES), entries)
    for batch in batches:
        added.add(batch)
    return added


def change(kind: str, locked: Any, current: Any, tolerance: Any = EXACT) -> LockChange | None:
    old = named(kind, locked, tolerance=tolerance)
    return compare(named(kind, current, tolerance=tolerance, locked=old), lambda: pack_streams(old.streams))


def changed(kind: str, locked: Any, current: Any, tolerance: Any = EXACT) -> LockChange:
    reported = change(kind, locked, current, tolerance)
    assert reported is not None
    assert (reported.kind, reported.name) == (kind, "x")
    assert reported.finding == f"x: {reported.headline.removeprefix('x: ')}"
    return reported


KINDS = pytest.mark.parametrize("kind", ["inputs", "outputs"])


@KINDS
def test_equal_batches_are_not_reported_and_no_sample_is_loaded(kind: str) -> None:
    locked = named(kind, {"a": A, "b": B})
    current = named(kind, {"a": A[:1], "b": B[:1]}, {"a": A[1:], "b": B[1:]}, locked=locked)
    assert compare(current, lambda: pytest.fail("was called")) is None


@KINDS
def test_missing_and_new_arrays_are_reported_together(kind: str) -> None:
    assert changed(kind, {"a": A, "b": B}, {"a": A, "c": B}).headline.removeprefix("x: ") == "b is missing; c is new"


@KINDS
def test_exchanged_arrays_are_recognized(kind: str) -> None:
    reported = changed(kind, {"a": A[:, 0], "b": B}, {"a": B, "b": A[:, 0]})
    words = "a: has the values locked for b; b: has the values locked for a"
    assert reported.headline.removeprefix("x: ") == words
    if kind == "outputs":
        assert reported.details == {"differences": ["a has the values locked for b", "b has the values locked for a"]}


def test_a_single_array_is_reported_without_its_path() -> None:
    assert changed("outputs", 0.5, 0.25).headline == "x: 0.5 -> 0.25"
    assert changed("outputs", {"a": 0.5}, {"a": 0.25}).headline == "x: 0.5 -> 0.25"
    assert changed("outputs", {"a": 0.5, "b": 1.0}, {"a": 0.25, "b": 1.0}).headline == "x: a: 0.5 -> 0.25"


def test_three_differences_are_shown_and_the_rest_counted() -> None:
    names = "abcde"
    reported = changed("outputs", dict.fromkeys(names, 1.0), {name: 2.0 + i for i, name in enumerate(names)})
    assert reported.headline == "x: a: 1 -> 2; b: 1 -> 3; c: 1 -> 4 (and 2 more)"
    assert len(reported.details["differences"]) == 5  # type: ignore[arg-type]


@KINDS
def test_only_differences_beyond_the_tolerance_are_reported(kind: str) -> None:
    assert change(kind, A, A + 0.05, LOOSE) is None
    assert changed(kind, A, A + 0.2, LOOSE).headline
    assert (change(kind, A, A + 0.05) is None) is False


def test_an_input_is_reported_with_its_diagnosis_and_pictures() -> None:
    reported = changed("inputs", {"a": A, "b": B}, {"a": A / 2, "b": B})
    assert reported.headline.startswith("a: ")
    assert reported.details.keys() == {"a"}
    assert reported.pictures.keys() == {"a"}


def test_batches_are_complete_with_as_many_samples_as_locked() -> None:
    locked = named("inputs", {"a": A, "b": B})
    assert named("inputs", {"a": A, "b": B, "c": B}, locked=locked).has_all_samples
    assert named("inputs", {"a": A[:1], "b": B[:1]}, {"a": A, "b": B}, locked=locked).has_all_samples
    assert not named("inputs", {"a": A, "b": B[:2]}, locked=locked).has_all_samples
    assert not named("inputs", {"a": A}, locked=locked).has_all_samples


def test_a_recomputed_metric_shows_how_much_the_inputs_explain() -> None:
    old = named("inputs", A)
    new = named("inputs", A + 1, locked=old)
    metrics = named("outputs", float(A.mean())).entry()["arrays"]
    description = describe_recomputed_metrics(np.mean, new, pack_streams(old.streams), metrics, nullcontext)
    words = "2.5 with the locked inputs, 3.5 with this run's; the inputs explain all of the change"
    assert description == f"recomputed on 3 samples: {words}"


def test_a_metric_is_not_recomputed_without_stored_inputs() -> None:
    new = named("inputs", A + 1, locked=named("inputs", A))
    assert describe_recomputed_metrics(np.mean, new, {}, {}, lambda: pytest.fail("was called")) == ""
