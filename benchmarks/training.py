"""The cost of guarding a forward in training mode with autograd (exempted), compared with one in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.models import mlp
from benchmarks.timing import Row, Times, interleaved, one_thread, warm
from pytest_evalmode import guard
from pytest_evalmode.guards import Guard

FORWARDS = 200

Exempt = Callable[[bool], Guard]


def run() -> Iterator[Row]:
    with one_thread():
        for rules, strict in (("default", False), ("strict", True)):
            yield from rows(rules, timed(strict=strict))


def in_eval_mode(strict: bool) -> Guard:
    return guard(strict=strict)


def in_training_mode(strict: bool) -> Guard:
    """Return a guard with the exemptions that a test of training declares."""
    return guard(strict=strict, train=["*"], allow=["grad-mode"])


def forwards(model: nn.Module, x: Tensor, times: int) -> None:
    """Run several forwards; autograd records them only in training mode."""
    with torch.set_grad_enabled(model.training):
        for _ in range(times):
            model(x)


def timed(*, strict: bool) -> Times:
    """Time forwards in eval and training mode, without and with a guard."""
    x = torch.rand(4, 32)

    def plain(model: nn.Module) -> float:
        return warm(lambda: forwards(model, x, FORWARDS))

    def guarded(model: nn.Module, exempt: Exempt) -> float:
        with exempt(strict):
            return plain(model)

    evaluated, trained = mlp(), mlp().train()
    return interleaved(
        {
            "eval": lambda: plain(evaluated),
            "eval, guarded": lambda: guarded(evaluated, in_eval_mode),
            "training": lambda: plain(trained),
            "training, guarded": lambda: guarded(trained, in_training_mode),
        },
        seconds=20,
    )


def rows(rules: str, times: Times) -> Iterator[Row]:
    extra = {}
    for mode in ("eval", "training"):
        extra[mode] = [a - b for a, b in zip(times.rounds[f"{mode}, guarded"], times.rounds[mode], strict=True)]
        if rules == "default":
            yield Row(f"eleven modules, {mode}: plain", 1e6 * times[mode] / FORWARDS, "µs")
        yield Row(f"eleven modules, {mode}, {rules}", 1e6 * times[f"{mode}, guarded"] / FORWARDS, "µs")
        yield Row(f"eleven modules, {mode}, {rules}: more", 1e6 * median(extra[mode]) / FORWARDS, "µs")
    bar = 2 if rules == "default" else None
    ratio = median(a / b for a, b in zip(extra["training"], extra["eval"], strict=True))
    yield Row(f"extra time in training mode, relative to eval mode, {rules}", ratio, "×", bar)
