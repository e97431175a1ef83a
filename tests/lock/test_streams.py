"""Streams of samples: independent of the batch size, and the stored part is enough to describe a difference."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from pytest_evalmode.lock.arrays import array_differences, tolerance
from pytest_evalmode.lock.arrays.array_entries import matches
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.stream import Stream, extend_streams

MAX_BYTES = 1 << 19
DEFAULT = {"rtol": None, "atol": None}


def streams(
    *batches: Any, max_bytes: int = MAX_BYTES, few_samples: bool = True, exact: bool = True
) -> dict[str, Stream]:
    extended: dict[str, Stream] = {}
    for batch in batches:
        extend_streams(extended, batch, max_bytes, MAX_BYTES, few_samples=few_samples, exact=exact)
    return extended


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


def difference(locked: Any, current: Any, max_bytes: int = MAX_BYTES) -> str:
    """Describe how an array differs, in the words of the lock."""
    old, new = streams(locked, max_bytes=max_bytes), streams(current, max_bytes=max_bytes)
    ((name, stream),) = new.items()
    entry = old[name].entry()
    assert not matches(entry, stream.entry())
    stored = pack_streams(old)
    return array_differences.describe_difference(entry, stream, stored.get(name), stored.get(f"{name}#digests"))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.flip(0), "samples were .*(reverse|order)"),
        (lambda x: x[:-3], "samples were"),
        (lambda x: torch.cat([x, x[:2]]), "samples were"),
        (lambda x: torch.cat([x[:99], x[:1] + 1]), r"1 of 100 samples differ \(99\)"),
        (lambda x: x.double(), "float64"),
    ],
)
def test_samples_that_are_not_stored_are_compared_by_their_digests(change: Any, words: str) -> None:
    description = difference(X, change(X))
    assert re.search(words, description), description


def test_a_sample_that_is_too_large_is_cropped_symmetrically() -> None:
    big = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert "flipped left to right" in difference(big, big.flip(3), max_bytes=20_000)


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
    description = difference(locked, current)
    assert re.search(words, description), description


def test_texts_are_compared_as_texts() -> None:
    assert "lowercased" in difference(["A cat", "The Dog"], ["a cat", "the dog"])
    assert entries(streams(["a"], ["longer"])) == entries(streams(["a", "longer"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_dtype_that_numpy_does_not_have_is_recorded(dtype: torch.dtype) -> None:
    narrow = X.to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert streams(narrow)["batch"].entry()["dtype"] == streams([*narrow])["batch"].entry()["dtype"] == name
    assert difference(narrow, narrow.float()) == f"values differ: dtype {name} -> float32"
    description = difference(X, narrow)
    assert "rounded to bfloat16" in description or dtype != torch.bfloat16, description
    assert f"; dtype float32 -> {name}" in description, description


def beyond_tolerance(locked: Any, current: Any) -> str | None:
    old, new = (streams(each, few_samples=False, exact=False, max_bytes=4000) for each in (locked, current))
    stored = pack_streams(old)
    difference = tolerance.find_difference(
        old["batch"].entry(), new["batch"], stored.get("batch"), stored.get("batch#sketch"), DEFAULT
    )
    return None if difference is None else difference[0]


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
        (Y.repeat(20, 1), torch.cat([Y.repeat(10, 1), Y.repeat(10, 1) * 2]), "of 1000 differ; mean "),
        (Y.repeat(20, 1), swapped(Y.repeat(20, 1), 998, 999), "samples 998, 999 of 1000 differ"),
        (Y.repeat(200, 1), swapped(Y.repeat(200, 1), 9998, 9999), "samples 9984 or later of 10000 differ"),
        (Y.repeat(20, 1).argmax(1), swapped(Y.repeat(20, 1).argmax(1), 998, 999), "samples 998, 999 of 1000 differ"),
        (Y.repeat(20, 1).to(torch.complex64), swapped(Y.repeat(20, 1).to(torch.complex64), 998, 999), "998, 999"),
        (Y[:1].repeat(1, 2000), Y[:1].repeat(1, 2000) + 1e-7, None),
        (Y[:1].repeat(1, 2000), Y[:1].repeat(1, 2000).flip(1), "samples 0 of 1 differ"),
        (torch.cat([Y.repeat(19, 1), Y / Y.ne(Y[0, 0])]), Y.repeat(20, 1), "samples 950 of 1000 differ; mean -inf -> "),
        (Y.to(torch.complex64), Y.to(torch.complex64) + 1e-7, None),
    ],
)
def test_outputs_are_compared_within_tolerance(locked: Any, current: Any, words: str | None) -> None:
    description = beyond_tolerance(locked, current)
    assert description is None if words is None else description is not None and words in description, description
