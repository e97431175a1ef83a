"""The same samples, model and outputs in another form are not reported."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_evalmode.lock.lock_file import LockError, lock_path
from pytest_evalmode.lock.lock_folder import NewLock, exclusive, write_lock
from pytest_evalmode.lock.running_lock import RunningLock
from pytest_evalmode.trace import LockChange
from tests.lock import pictures

Use = Callable[[RunningLock], None]
LOOSE = 1e-4, 1e-5
EXACT = None, None
X = torch.from_numpy(pictures.normalize(pictures.digits(200)))


MANY = X.repeat(15, 1, 1, 1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10)).eval()


def changes(path: Path, was: Use, now: Use) -> list[LockChange]:
    """Lock with `was`, and return the changes that `now` reports."""
    lock = RunningLock(path, "test", update=True)
    was(lock)
    assert lock.close(finished=True) == []
    record = json.loads(lock.record())
    samples = b64decode(record["samples"]) if record["samples"] else None
    models = {key: (entry, b64decode(data)) for key, (entry, data) in record["models"].items()}
    with exclusive(lock_path(path, "test").parents[1]):
        write_lock(lock_path(path, "test"), NewLock("test", record["entries"], samples, models))
    lock = RunningLock(path, "test", update=False)
    now(lock)
    return lock.close(finished=True)


def inputs(*batches: Any, tolerance: Any = EXACT) -> Use:
    def use(lock: RunningLock) -> None:
        for batch in batches:
            lock.add("inputs", "x", batch, tolerance, lambda: None)

    return use


def outputs(*values: Any) -> Use:
    def use(lock: RunningLock) -> None:
        for value in values:
            lock.add("outputs", "y", value, EXACT, lambda: None)

    return use


def model(module: nn.Module) -> Use:
    return lambda lock: lock.model(module, "net", None, None)


def parts(x: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(x, size))


def channels_last(module: nn.Module) -> nn.Module:
    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return module


def threaded(count: int) -> Tensor:
    """Return the outputs of a model for the images, computed on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            logits: Tensor = net()(X)
            return logits
    finally:
        torch.set_num_threads(before)


def another_file(folder: Path) -> list[Any]:
    """Return the first images, loaded from files and from copies of these."""
    pixels = pictures.digits()[:3, ..., 0]
    paths = [[folder / f"{kind}{i}.png" for i in range(3)] for kind in ("image", "copy")]
    for names in paths:
        for name, each in zip(names, pixels, strict=True):
            Image.fromarray(each).save(name)
    return [[Image.open(name) for name in names] for names in paths]


def loaded(folder: Path, **how: Any) -> nn.Module:
    """Return the model, loaded from a checkpoint on disk."""
    path = folder / "model.pt"
    torch.save(net().state_dict(), path)
    other = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    other.load_state_dict(torch.load(path, weights_only=True, **how), assign=bool(how))
    return other


VARIATIONS: dict[str, Callable[[Path], tuple[Use, Use]]] = {
    "another batch size": lambda _: (inputs(*parts(X, 64)), inputs(*parts(X, 7))),
    "not contiguous": lambda _: (inputs(X), inputs(X.transpose(2, 3).contiguous().transpose(2, 3))),
    "channels last": lambda _: (inputs(X), inputs(X.to(memory_format=torch.channels_last))),
    "an array": lambda _: (inputs(X), inputs(X.numpy())),
    "a list of samples": lambda _: (inputs(X), inputs(list(X))),
    "another order of a dict": lambda _: (
        inputs({"a": X, "b": np.arange(200)}),
        inputs({"b": np.arange(200), "a": X}),
    ),
    "with gradients": lambda _: (inputs(X), inputs(X.clone().requires_grad_())),
    "another path to the same images": lambda folder: (lambda a, b: (inputs(a), inputs(b)))(*another_file(folder)),
    "a worker process": lambda _: (
        inputs(*DataLoader(TensorDataset(X), batch_size=50)),
        inputs(*DataLoader(TensorDataset(X), batch_size=50, num_workers=1)),
    ),
    "one thread or two, inputs": lambda _: (
        inputs(threaded(1), tolerance=LOOSE),
        inputs(threaded(2), tolerance=LOOSE),
    ),
    "one thread or two, outputs": lambda _: (outputs(threaded(1)), outputs(threaded(2))),
    "noise in many outputs": lambda _: (outputs(MANY), outputs(*parts(MANY * (1 + 1e-6), 999))),
    "noise within a tolerance in many inputs": lambda _: (
        inputs(MANY, tolerance=LOOSE),
        inputs(*parts(MANY * (1 + 1e-5), 999), tolerance=LOOSE),
    ),
    "negative zeros": lambda _: (inputs(MANY * 0), inputs(MANY * -0.0)),
    "another NaN": lambda _: (inputs(-(X / X.relu())), inputs(X / -X.relu())),
    "the model from its checkpoint": lambda folder: (model(net()), model(loaded(folder))),
    "a checkpoint mapped into memory": lambda folder: (model(net()), model(loaded(folder, mmap=True))),
    "weights channels last": lambda _: (model(net()), model(channels_last(net()))),
}


@pytest.mark.parametrize("variation", VARIATIONS.values(), ids=VARIATIONS)
def test_a_harmless_variation_is_not_reported(tmp_path: Path, variation: Callable[[Path], tuple[Use, Use]]) -> None:
    assert changes(tmp_path / "test_it.py", *variation(tmp_path)) == []


LATER = X.repeat(60, 1, 1, 1)
SWAPPED = torch.cat([LATER[:-2], LATER[-1:], LATER[-2:-1]])
ONE = torch.cat([MANY[:-1], MANY[-1:] + torch.eye(8) * 1e-3])


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        (inputs(X), inputs(X * (1 + 1e-6)), ""),
        (inputs(X, tolerance=LOOSE), inputs(X * 1.01, tolerance=LOOSE), "1.01"),
        (inputs(LATER), inputs(SWAPPED), "values differ"),
        (inputs(MANY, tolerance=LOOSE), inputs(ONE, tolerance=LOOSE), ""),
        (outputs(MANY), outputs(ONE), "8 of 192000 values differ, by up to 0.001"),
        (inputs(X), inputs(X.flip(0), tolerance=LOOSE), ""),
        (inputs(LATER), inputs(LATER * (1 + 1e-5), tolerance=LOOSE), "differ"),
        (
            inputs(X.bfloat16(), tolerance=LOOSE),
            inputs(X.bfloat16().float(), tolerance=LOOSE),
            "float32",
        ),
        (
            inputs({"a": X, "b": -X}),
            inputs({"a": -X, "b": X}),
            "a: has the values locked for b; b: has the values locked for a",
        ),
        (outputs(X.bfloat16()), outputs(X.bfloat16().float()), "dtype bfloat16 -> float32"),
    ],
)
def test_a_similar_change_is_reported(tmp_path: Path, was: Use, now: Use, words: str) -> None:
    (change,) = changes(tmp_path / "test_it.py", was, now)
    assert words in change.headline


@pytest.mark.parametrize("use", [outputs(LATER), inputs(LATER, tolerance=LOOSE)])
def test_values_that_are_too_many_to_compare_within_a_tolerance_are_refused(tmp_path: Path, use: Use) -> None:
    with pytest.raises(LockError, match=r"too many to store.*Lock less.*or pass rtol=0, atol=0 to compare bit by bit"):
        changes(tmp_path / "test_it.py", use, use)
