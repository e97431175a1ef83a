"""Streams of samples: independent of the batch size, and the stored part is enough to describe a difference."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from pytest_evalmode.lock.arrays.comparison import compare
from pytest_evalmode.lock.arrays.named_batches import NamedBatches
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.stream import Budget, Stream
from pytest_evalmode.lock.lock_file import LockError

MAX_BYTES = 1 << 19
EXACT = None, None


def named(*batches: Any, kind: str = "inputs", max_bytes: int = MAX_BYTES, locked: Any = None) -> NamedBatches:
    added = NamedBatches(kind, "x", None, EXACT, batches[0], Budget(max_bytes), locked or {})
    for batch in batches:
        added.add(batch)
    return added


def streams(*batches: Any, max_bytes: int = MAX_BYTES) -> dict[str, Stream]:
    return named(*batches, max_bytes=max_bytes).streams


def entries(streams: dict[str, Stream]) -> dict[str, Any]:
    return {name: stream.entry() for name, stream in streams.items()}


X = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_the_batch_size_does_not_matter(size: int) -> None:
    whole, parts = streams(X), streams(*X.split(size))  # type: ignore[no-untyped-call]
    assert entries(parts) == entries(whole)
    one, other = pack_streams(whole), pack_streams(parts)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


SAME = {
    "a batch": lambda x: {"x": x},
    "not contiguous": lambda x: {"x": x.transpose(1, 2).contiguous().transpose(1, 2)},
    "channels last": lambda x: {"x": x.to(memory_format=torch.channels_last)},
    "numpy": lambda x: {"x": x.numpy()},
    "requires grad": lambda x: {"x": x.clone().requires_grad_()},
}


@pytest.mark.parametrize("convert", SAME.values(), ids=SAME)
def test_the_same_values_have_the_same_entry(convert: Any) -> None:
    assert entries(streams(convert(X))) == entries(streams({"x": X}))


def difference(locked: Any, current: Any, kind: str = "inputs", max_bytes: int = MAX_BYTES) -> str | None:
    """Describe how an array differs, in the words of the lock."""
    old = named(locked, kind=kind, max_bytes=max_bytes)
    entries = {path: stream.entry() for path, stream in old.streams.items()}
    change = compare(named(current, kind=kind, locked=entries), lambda: pack_streams(old.streams))
    return None if change is None else change.headline.removeprefix("x: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.flip(0), "samples were .*(reverse|order)"),
        (lambda x: x[:-3], "samples were"),
        (lambda x: torch.cat([x, x[:2]]), "samples were"),
        (lambda x: torch.cat([x[:99], x[:1] + 1]), r"1 of 100 samples"),
        (lambda x: x.double(), "float64"),
    ],
)
def test_samples_that_are_not_stored_are_compared_by_their_digests(change: Any, words: str) -> None:
    description = difference(X, change(X), max_bytes=40_000)
    assert description is not None
    assert re.search(words, description), description


def test_a_sample_that_is_too_large_is_cropped_symmetrically() -> None:
    big = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert "flipped left to right" in str(difference(big, big.flip(3), max_bytes=40_000))


CLASSES = torch.arange(100) % 10


@pytest.mark.parametrize(
    ("locked", "current", "words"),
    [
        (CLASSES, (CLASSES + 1) % 10, r"labels were renumbered in 10 classes \(0 -> 1, 1 -> 2"),
        (
            CLASSES,
            CLASSES.reshape(2, 50).T.flatten(),
            "samples were reord",
        ),
        (CLASSES, CLASSES + 1, "shifted by 1"),
    ],
)
def test_labels(locked: Any, current: Any, words: str) -> None:
    description = str(difference(locked, current))
    assert re.search(words, description), description


def test_texts_are_compared_as_texts() -> None:
    assert "lowercased" in str(difference(["A cat", "The Dog"], ["a cat", "the dog"]))
    assert entries(streams(["a"], ["longer"])) == entries(streams(["a", "longer"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_dtype_that_numpy_does_not_have_is_recorded(dtype: torch.dtype) -> None:
    narrow = X.to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert streams(narrow)["batch"].entry()["dtype"] == streams([*narrow])["batch"].entry()["dtype"] == name
    assert "float32" in str(difference(narrow, narrow.float()))
    assert "bfloat16" in str(difference(X, narrow)) or dtype != torch.bfloat16


def swapped(x: torch.Tensor, i: int, j: int) -> torch.Tensor:
    other = x.clone()
    other[[i, j]] = x[[j, i]]
    return other


Y = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("locked", "current", "words"),
    [
        (Y, Y + 1e-7, None),
        (Y, Y + 0.1, "500 of 500 values differ, by up to 0.1"),
        (Y, Y.flip(1), "; the argmax differs in "),
        (Y, Y[:40], "samples 50 -> 40"),
        (Y, Y.double(), "dtype float32 -> float64"),
        (0.93, 0.87, "0.93 -> 0.87"),
        (float("nan"), float("nan"), None),
        (Y.bfloat16(), (Y.bfloat16().float() * 1.004).bfloat16(), None),
        (Y.repeat(20, 1), Y.repeat(20, 1) + 1e-7, None),
        (Y.bfloat16(), Y.bfloat16().float(), "dtype bfloat16 -> float32"),
        (Y.repeat(20, 1), Y.repeat(20, 1) * (1 + 1.2e-6), None),
        (Y.repeat(20, 1), swapped(Y.repeat(20, 1), 998, 999), "20 of 10000 values differ"),
        (Y.repeat(200, 1), swapped(Y.repeat(200, 1), 9998, 9999), "20 of 100000 values differ"),
        (Y.repeat(20, 1).argmax(1), swapped(Y.repeat(20, 1).argmax(1), 998, 999), "2 of 1000 values differ"),
        (
            Y.repeat(20, 1).to(torch.complex64),
            swapped(Y.repeat(20, 1).to(torch.complex64), 998, 999),
            "20 of 10000 values differ",
        ),
        (Y[:1].repeat(1, 2000), Y[:1].repeat(1, 2000) + 1e-7, None),
        (Y[:1].repeat(1, 2000), Y[:1].repeat(1, 2000).flip(1), "of 20000 values differ"),
        (Y.to(torch.complex64), Y.to(torch.complex64) + 1e-7, None),
    ],
)
def test_outputs_are_compared_within_tolerance(locked: Any, current: Any, words: str | None) -> None:
    description = difference(locked, current, "outputs")
    assert description is None if words is None else description is not None and words in description, description


def test_a_dtype_that_cannot_be_stored_is_refused_by_name() -> None:
    with pytest.raises(LockError, match=r"inputs\(\): batch has dtype (float128|longdouble), which cannot be stored"):
        streams(np.zeros(3, np.longdouble))


def test_many_small_batches_equal_one() -> None:
    data = np.arange(3000.0).reshape(-1, 3)
    assert entries(streams(*(data[i : i + 1] for i in range(1000)))) == entries(streams(data))
    ragged = [data[:2], data[2:3, :2], data[3:4]]
    assert entries(streams(*ragged)) == entries(streams(data[:1], *ragged[0:0], data[1:2], *ragged[1:]))


def test_a_batch_that_is_changed_after_the_call_is_locked_as_it_was() -> None:
    for batch in (X[:1].clone(), X[:1].numpy().copy(), np.array(["a", "b"])):
        added = named(batch)
        before = entries(named(batch, batch).streams)
        added.add(batch)
        batch[:] = 0
        assert entries(added.streams) == before


def test_batches_of_several_dtypes_and_no_samples_are_gathered() -> None:
    parts = [X[:1], X[1:1], X[1:2].double(), X[2:3].double(), X[3:4]]
    assert entries(streams(*parts)) == entries(streams(parts[0], torch.cat(parts[2:4]), parts[4]))
    empty = np.zeros((3, 0), np.int64)
    assert entries(streams(empty))["batch"]["samples"] == 3
    assert entries(streams(empty, empty)) == entries(streams(np.zeros((6, 0), np.int64)))


def test_a_batch_takes_little_memory() -> None:
    data = np.zeros((64, 1 << 18), np.float32)  # 64 MB
    for batch in (data, data.reshape(1, -1), data.reshape(-1)):
        tracemalloc.start()
        streams(batch)["batch"].entry()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.1 * data.nbytes
