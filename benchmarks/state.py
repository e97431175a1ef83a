"""The cost of opening and closing a guard around a model that does not change."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Iterator
from importlib import import_module

import torch
from torch import nn

from benchmarks.models import bert, linears, resnet50, tensors
from benchmarks.timing import Row, Times, interleaved, one_thread, warm
from pytest_evalmode.guards import Guard

SMALL = 10_000


def run() -> Iterator[Row]:
    yield from compared("ResNet-50", resnet50(), reads=(3, 2.5), by_hand=(0.2, 0.1))
    yield from compared_with_pytest_torch()
    yield from compared("BERT-base", bert(), reads=(None, 2.5), by_hand=(None, 0.1))
    yield from compared("500 M parameters", linears(500), reads=(None, 2.5), by_hand=(None, 0.1))
    gc.collect()
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 8e9:
        yield from compared("1 B parameters", linears(1000), reads=(None, 2.5), by_hand=(None, 0.1))
        gc.collect()
    yield from compared("one tensor of 400 MB", tensors(1, 100_000_000), reads=(None, 2.5), by_hand=(None, 0.1))
    yield from small_tensors()


Limits = tuple[float | None, float | None]


def compared(what: str, model: nn.Module, reads: Limits, by_hand: Limits) -> Iterator[Row]:
    times = compare(model)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    for name, run in (("enter + exit", "guard"), ("one read", "read"), ("a copy and torch.equal", "by hand")):
        yield Row(f"{what}: {name}", 1e3 * times[run], "ms", size=size)
    yield Row(f"{what}: enter + exit relative to one read", times.ratio("guard", "read"), "x", *reads)
    yield Row(f"{what}: relative to one read on one thread", times.ratio("guard", "read on one thread"), "x")
    yield Row(f"{what}: relative to a copy and torch.equal", times.ratio("guard", "by hand"), "x", *by_hand)


def small_tensors() -> Iterator[Row]:
    times = compare(tensors(SMALL, 100))
    yield Row(f"{SMALL} small tensors: each", 1e6 * times["guard"] / SMALL, "µs", aim=4)
    yield Row(f"{SMALL} small tensors: relative to a copy and torch.equal", times.ratio("guard", "by hand"), "x")


def compare(model: nn.Module) -> Times:
    return interleaved(
        {
            "guard": lambda: warm(lambda: guard(model)),
            "read": lambda: warm(lambda: read(model)),
            "read on one thread": lambda: read_on_one_thread(model),
            "by hand": lambda: warm(lambda: by_hand(model)),
        }
    )


def compared_with_pytest_torch() -> Iterator[Row]:
    """Compare with pytest-torch.  Its `check_inference_contract` runs the model, so both sides run it once."""
    try:
        check = import_module("pytest_torch").check_inference_contract
    except ImportError:
        return
    model, image = resnet50(), torch.zeros(1, 3, 64, 64)

    def guarded() -> None:
        with torch.inference_mode():
            guard(model, lambda: model(image))

    times = interleaved(
        {
            "guard": lambda: warm(guarded),
            "contract": lambda: warm(lambda: check(model, image, checks=["no_state_mutation"])),
        }
    )
    yield Row("ResNet-50, one forward: relative to pytest-torch's contract", times.ratio("guard", "contract"), "x")


def guard(model: nn.Module, inside: Callable[[], object] = lambda: None) -> None:
    guard = Guard()
    guard.window.open()
    guard.watch(model)
    inside()
    guard.window.close()
    assert not guard.window.failures
    assert not guard.violations


def read(model: nn.Module) -> None:
    """Read every byte once: the minimum that any check needs."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.max()


def by_hand(model: nn.Module) -> None:
    """Copy the state and compare it afterwards: the usual check written by hand."""
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def read_on_one_thread(model: nn.Module) -> float:
    with one_thread():
        return warm(lambda: read(model))
