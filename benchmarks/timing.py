"""Times that can be compared on a machine that does other things too.

Every round takes each candidate once, in turning order, and ratios are medians over rounds: what disturbs one round
disturbs both sides of its ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

Measure = Callable[[], float]
"""Sets up what it needs, and returns the seconds that count."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; of `bar` and `aim`, less is better than either."""

    what: str
    value: float
    unit: str
    bar: float | None = None
    """What has to hold."""
    aim: float | None = None
    """What is to hold one day."""
    size: int | None = None
    """The bytes of the model, where the plot is to show how this grows with them."""


@dataclass(frozen=True, slots=True)
class Times:
    """The seconds of each candidate, round by round."""

    rounds: Mapping[str, list[float]]

    def ratio(self, name: str, to: str) -> float:
        return median(a / b for a, b in zip(self.rounds[name], self.rounds[to], strict=True))

    def extra(self, name: str, to: str) -> float:
        """How many seconds more one took than the other."""
        return median(a - b for a, b in zip(self.rounds[name], self.rounds[to], strict=True))

    def __getitem__(self, name: str) -> float:
        return median(self.rounds[name])


def clock(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def warm(run: Callable[[], object]) -> float:
    """The seconds of a run that follows another of its kind: what ran before that does not weigh on it."""
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
    """Take turns for about so many seconds, after a round that does not count."""
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
