"""Streams of samples: the size of the batches is of no account; what is kept suffices to say how they differ."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from pytest_evalmode.lock.arrays import array_differences
from pytest_evalmode.lock.arrays import tolerance as tolerances
from pytest_evalmode.lock.arrays.array_entries import matches
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.stream import Stream, extend_streams

ROOM = 1 << 19
DEFAULT = {"rtol": None, "atol": None}


def streams(*parts: Any, room: int = ROOM, fewest: bool = True, exact: bool = True) -> dict[str, Stream]:
    found: dict[str, Stream] = {}
    for part in parts:
        extend_streams(found, part, room, ROOM, few_samples=fewest, exact=exact)
    return found


def entries(found: dict[str, Stream]) -> dict[str, Any]:
    return {name: stream.entry() for name, stream in found.items()}


X = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_the_size_of_the_batches_is_of_no_account(size: int) -> None:
    whole, parts = streams(X), streams(*X.split(size))  # type: ignore[no-untyped-call]
    assert entries(parts) == entries(whole)
    kept, others = pack_streams(whole), pack_streams(parts)
    assert kept.keys() == others.keys()
    assert all(np.array_equal(kept[name], others[name]) for name in kept)


SAME = {
    "a batch": lambda x: {"x": x},
    "not contiguous": lambda x: {"x": x.transpose(1, 2).contiguous().transpose(1, 2)},
    "channels last": lambda x: {"x": x.to(memory_format=torch.channels_last)},
    "numpy": lambda x: {"x": x.numpy()},
    "requires grad": lambda x: {"x": x.clone().requires_grad_()},
}


@pytest.mark.parametrize("give", SAME.values(), ids=SAME)
def test_the_same_values_are_the_same(give: Any) -> None:
    assert entries(streams(give(X))) == entries(streams({"x": X}))


def difference(was: Any, now: Any, room: int = ROOM) -> str:
    """How an array differs, as the lock would tell it."""
    old, new = streams(was, room=room), streams(now, room=room)
    ((name, stream),) = new.items()
    entry = old[name].entry()
    assert not matches(entry, stream.entry())
    kept = pack_streams(old)
    return array_differences.describe_difference(entry, stream, kept.get(name), kept.get(f"{name}#digests"))[0]


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
def test_samples_that_were_not_kept_are_known_by_their_digests(change: Any, words: str) -> None:
    told = difference(X, change(X))
    assert re.search(words, told), told


def test_a_sample_that_has_no_room_is_cut_alike() -> None:
    big = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert "flipped left to right" in difference(big, big.flip(3), room=20_000)


CLASSES = torch.arange(100) % 10


@pytest.mark.parametrize(
    ("was", "now", "words"),
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
def test_labels(was: Any, now: Any, words: str) -> None:
    told = difference(was, now)
    assert re.search(words, told), told


def test_texts_are_compared_as_texts() -> None:
    assert "lowercased" in difference(["A cat", "The Dog"], ["a cat", "the dog"])
    assert entries(streams(["a"], ["longer"])) == entries(streams(["a", "longer"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_dtype_that_numpy_has_not_is_recorded_as_it_is(dtype: torch.dtype) -> None:
    narrow = X.to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert streams(narrow)["batch"].entry()["dtype"] == streams([*narrow])["batch"].entry()["dtype"] == name
    assert difference(narrow, narrow.float()) == f"values differ: dtype float32, not {name}"
    told = difference(X, narrow)
    assert "rounded to bfloat16" in told or dtype != torch.bfloat16, told
    assert f"given as {name}, not float32" in told, told


def far(was: Any, now: Any, tolerance: Any = DEFAULT) -> str | None:
    old, new = (streams(each, fewest=False, exact=False, room=4000) for each in (was, now))
    kept = pack_streams(old)
    found = tolerances.find_difference(
        old["batch"].entry(), new["batch"], kept.get("batch"), kept.get("batch#sketch"), tolerance
    )
    return None if found is None else found[0]


def swapped(x: torch.Tensor, i: int, j: int) -> torch.Tensor:
    other = x.clone()
    other[[i, j]] = x[[j, i]]
    return other


Y = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        (Y, Y + 1e-7, None),
        (Y, Y + 0.1, "500 of 500 values differ, by up to 0.1"),
        (Y, Y.flip(1), "samples have another largest value"),
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
        (Y.repeat(200, 1), swapped(Y.repeat(200, 1), 9998, 9999), "samples some from 9984 on of 10000 differ"),
        (Y.repeat(20, 1).argmax(1), swapped(Y.repeat(20, 1).argmax(1), 998, 999), "samples 998, 999 of 1000 differ"),
        (Y.repeat(20, 1).to(torch.complex64), swapped(Y.repeat(20, 1).to(torch.complex64), 998, 999), "998, 999"),
        (Y[:1].repeat(1, 2000), Y[:1].repeat(1, 2000) + 1e-7, None),
        (Y[:1].repeat(1, 2000), Y[:1].repeat(1, 2000).flip(1), "samples 0 of 1 differ"),
        (torch.cat([Y.repeat(19, 1), Y / Y.ne(Y[0, 0])]), Y.repeat(20, 1), "samples 950 of 1000 differ; mean -inf -> "),
        (Y.to(torch.complex64), Y.to(torch.complex64) + 1e-7, None),
    ],
)
def test_outputs_are_compared_within_tolerance(was: Any, now: Any, words: str | None) -> None:
    told = far(was, now)
    assert told is None if words is None else told is not None and words in told, told
