"""The cost that a guard reports (`seconds`), compared with its real cost: the same forwards with and without it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.models import mlp
from benchmarks.timing import Row, clock, interleaved, one_thread
from benchmarks.training import Exempt, forwards, in_eval_mode, in_training_mode

WINDOWS = 500
FORWARDS = 10


def run() -> Iterator[Row]:
    x = torch.rand(4, 32)
    with one_thread():
        for rules, strict in (("default", False), ("strict", True)):
            yield from compared(f"eval, {rules}", mlp(), x, in_eval_mode, strict)
            yield from compared(f"training, {rules}", mlp().train(), x, in_training_mode, strict)


def compared(what: str, model: nn.Module, x: Tensor, exempt: Exempt, strict: bool) -> Iterator[Row]:
    reported: list[float] = []

    def plain() -> None:
        for _ in range(WINDOWS):
            forwards(model, x, FORWARDS)

    def guarded() -> None:
        seconds = 0.0
        for _ in range(WINDOWS):
            with exempt(strict) as guarded_block:
                forwards(model, x, FORWARDS)
            seconds += guarded_block.window.seconds
        reported.append(seconds)

    times = interleaved({"plain": lambda: clock(plain), "guarded": lambda: clock(guarded)}, seconds=10)
    cost = [a - b for a, b in zip(times.rounds["guarded"], times.rounds["plain"], strict=True)]
    share = median(a / b for a, b in zip(reported[1:], cost, strict=True))  # the first round does not count
    yield Row(f"{WINDOWS * FORWARDS} tiny forwards, {what}: cost", 1e3 * median(cost), "ms")
    yield Row(f"{WINDOWS * FORWARDS} tiny forwards, {what}: `seconds`", 1e3 * median(reported[1:]), "ms")
    yield Row(f"`seconds` is off by, {what}", 100 * abs(share - 1), "%", bar=33)
