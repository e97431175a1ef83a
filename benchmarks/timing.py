"""Timing that stays comparable on a busy machine.

Each round runs every candidate once, in rotating order.  Ratios are computed per round, so that a disturbance affects
both sides, and the result is the median over all rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

Measure = Callable[[], float]
"""A function that runs its setup and returns the measured seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.  The value should be less than `bar` and `aim`."""

    what: str
    value: float
    unit: str
    bar: float | None = None
    """The limit that must hold."""
    aim: float | None = None
    """The limit to reach later."""
    size: int | None = None
    """The size of the model in bytes, for rows that the plot shows over the size."""


@dataclass(frozen=True, slots=True)
class Times:
    """The seconds of each candidate in each round."""

    rounds: Mapping[str, list[float]]

    def ratio(self, name: str, to: str) -> float:
        return median(a / b for a, b in zip(self.rounds[name], self.rounds[to], strict=True))

    def extra(self, name: str, to: str) -> float:
        """Return the median of the extra seconds of one candidate over another."""
        return median(a - b for a, b in zip(self.rounds[name], self.rounds[to], strict=True))

    def __getitem__(self, name: str) -> float:
        return median(self.rounds[name])


def clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def warm(run: Callable[[], object]) -> float:
    """Return the seconds of the second of two runs, so that caches are warm."""
    run()
    return clock(run)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def interleaved(
    candidates: Mapping[str, Measure], *, seconds: float = 6, at_least: int = 7, at_most: int = 200
) -> Times:
    """Run the candidates in turn for about `seconds`, after one warm-up round."""
    order = list(candidates)
    for name in order:
        candidates[name]()
    rounds: dict[str, list[float]] = {name: [] for name in order}
    ends = time.perf_counter() + seconds
    for done in range(at_most):
        if done >= at_least and time.perf_counter() > ends:
            break
        for name in order:
            rounds[name].append(candidates[name]())
        order.append(order.pop(0))
    return Times(rounds)
