"""What comes under one name, against what was locked of it: plain arrays, no lock file."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from pytest_evalmode.lock.arrays.comparison import compare
from pytest_evalmode.lock.arrays.named_batches import NamedBatches
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.recomputed_metrics import describe_recomputed_metrics
from pytest_evalmode.trace import LockChange

ROOM = 1 << 16
EXACT = {"rtol": None, "atol": None}
LOOSE = {"rtol": 0.0, "atol": 0.1}
A, B = np.arange(6.0).reshape(3, 2), -np.arange(3.0)


def flow(kind: str, *batches: Any, tolerance: Any = EXACT) -> NamedBatches:
    found = NamedBatches(kind, "x", None, tolerance, batches[0])
    for batch in batches:
        found.add(batch, tolerance, ROOM, ROOM)
    return found


def change(kind: str, was: Any, now: Any, tolerance: Any = EXACT) -> LockChange | None:
    old = flow(kind, was, tolerance=tolerance)
    return compare(flow(kind, now, tolerance=tolerance), old.entry()["arrays"], lambda: pack_streams(old.streams))


def changed(kind: str, was: Any, now: Any, tolerance: Any = EXACT) -> LockChange:
    found = change(kind, was, now, tolerance)
    assert found is not None
    assert (found.kind, found.name, found.finding) == (kind, "x", f"x: {found.headline.removeprefix('x: ')}")
    return found


KINDS = pytest.mark.parametrize("kind", ["inputs", "outputs"])


@KINDS
def test_what_is_the_same_is_not_told_and_nothing_kept_is_read(kind: str) -> None:
    now = flow(kind, {"a": A[:1], "b": B[:1]}, {"a": A[1:], "b": B[1:]})
    assert compare(now, flow(kind, {"a": A, "b": B}).entry()["arrays"], lambda: pytest.fail("was asked")) is None


@KINDS
def test_arrays_that_are_missing_or_new_are_told_in_one(kind: str) -> None:
    assert changed(kind, {"a": A, "b": B}, {"a": A, "c": B}).headline.removeprefix("x: ") == "b is missing; c is new"


@KINDS
def test_an_array_that_is_what_another_was(kind: str) -> None:
    found = changed(kind, {"a": A[:, 0], "b": B}, {"a": B, "b": A[:, 0]})
    assert found.headline.removeprefix("x: ") == "a: what was b; b: what was a"
    if kind == "outputs":
        assert found.details == {"differences": ["a is what b was", "b is what a was"]}


def test_an_array_alone_is_told_without_its_path() -> None:
    assert changed("outputs", 0.5, 0.25).headline == "x: 0.5 -> 0.25"
    assert changed("outputs", {"a": 0.5}, {"a": 0.25}).headline == "x: 0.5 -> 0.25"
    assert changed("outputs", {"a": 0.5, "b": 1.0}, {"a": 0.25, "b": 1.0}).headline == "x: a: 0.5 -> 0.25"


def test_of_many_differences_three_are_told_and_the_rest_counted() -> None:
    names = "abcde"
    found = changed("outputs", dict.fromkeys(names, 1.0), {name: 2.0 + i for i, name in enumerate(names)})
    assert found.headline == "x: a: 1 -> 2; b: 1 -> 3; c: 1 -> 4 (and 2 more)"
    assert len(found.details["differences"]) == 5  # type: ignore[arg-type]


@KINDS
def test_within_a_tolerance_nothing_is_told_and_beyond_it_all(kind: str) -> None:
    assert change(kind, A, A + 0.05, LOOSE) is None
    assert changed(kind, A, A + 0.2, LOOSE).headline
    assert (change(kind, A, A + 0.05) is None) is False


def test_an_input_is_told_with_its_diagnosis_and_to_look_at() -> None:
    found = changed("inputs", {"a": A, "b": B}, {"a": A / 2, "b": B})
    assert found.headline.startswith("a: ")
    assert found.details.keys() == {"a"}
    assert found.pictures.keys() == {"a"}


def test_all_has_come_where_as_many_samples_have() -> None:
    was = flow("inputs", {"a": A, "b": B}).entry()["arrays"]
    assert flow("inputs", {"a": A, "b": B, "c": B}).has_all_samples(was)
    assert flow("inputs", {"a": A[:1], "b": B[:1]}, {"a": A, "b": B}).has_all_samples(was)
    assert not flow("inputs", {"a": A, "b": B[:2]}).has_all_samples(was)
    assert not flow("inputs", {"a": A}).has_all_samples(was)


def test_a_metric_made_again_says_how_much_is_the_inputs() -> None:
    old, new = flow("inputs", A), flow("inputs", A + 1)
    metrics = flow("outputs", float(A.mean())).entry()["arrays"]
    told = describe_recomputed_metrics(
        np.mean, new, old.entry()["arrays"], pack_streams(old.streams), metrics, nullcontext
    )
    words = "2.5 with the inputs that were locked, 3.5 with this run's: they explain all of it"
    assert told == f"made again of the first 3 samples: {words}"


def test_inputs_of_which_nothing_was_kept_are_not_tried() -> None:
    old, new = flow("inputs", A), flow("inputs", A + 1)
    assert (
        describe_recomputed_metrics(np.mean, new, old.entry()["arrays"], {}, {}, lambda: pytest.fail("was entered"))
        == ""
    )
