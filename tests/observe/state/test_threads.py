"""Reading a model leaves no threads behind.

OpenMP keeps a thread team for each thread that ever ran a parallel operator.  Teams spin before they sleep, and would
take cores from the user's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import HygieneError, guard
from pytest_evalmode.observe.state import write_tracking

TASKS = Path("/proc/self/task")
THREADS = 4
LARGE = 1 << 23  # float32: four pieces, one for each thread

pytestmark = pytest.mark.skipif(not TASKS.exists(), reason="the system does not list the threads of a process")


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Thread]:
    """Return the threads that Python has started."""
    threads: list[Thread] = []
    start = Thread.start

    def recorded_start(self: Thread) -> None:
        threads.append(self)
        start(self)

    monkeypatch.setattr(Thread, "start", recorded_start)
    return threads


@pytest.fixture(params=["off", "on"])
def reads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return how often a window reads its model: once if the kernel reports that it was not written, else twice."""
    write_tracking.reset()
    if request.param == "off":
        write_tracking.disable()
    yield 2 if write_tracking.tracker() is None else 1
    write_tracking.reset()


class Large(nn.Module):
    """A model with tensors that several threads read; its forward runs no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(LARGE), requires_grad=False)
        self.register_buffer("turned", torch.zeros(1 << 10, 1 << 10).t())
        self.register_buffer("small", torch.zeros(1 << 10))

    def forward(self, x: Tensor) -> Tensor:
        return x


def tasks() -> set[str]:
    """Return the threads of this process, including those of OpenMP."""
    return {task.name for task in TASKS.iterdir()}


def threads_left_by(run: Callable[[], object]) -> int:
    """Run this in a new thread, which has no thread team, and return how many more threads there are after."""
    counts: list[int] = []

    def count() -> None:
        before = tasks()
        run()
        # A joined thread may take a moment to end.
        attempts = iter(range(100))
        while tasks() - before and next(attempts, None) is not None:
            sleep(0.01)
        counts.append(len(tasks() - before))

    thread = Thread(target=count)
    thread.start()
    thread.join()
    return counts[0]


@pytest.mark.parametrize("strict", [False, True])
def test_a_window_leaves_no_thread(strict: bool, reads: int, started: list[Thread]) -> None:
    model, x = Large().eval(), torch.zeros(3)

    def run() -> None:
        with torch.no_grad(), guard(model, strict=strict):
            model(x)

    assert threads_left_by(run) == 0
    assert len(started) == 1 + reads * (THREADS - 1), "each read with helpers"
    assert not any(thread.is_alive() for thread in started)


def test_reporting_a_change_leaves_no_thread() -> None:
    model, x = Large().eval(), torch.zeros(3)

    def watched() -> None:
        with torch.no_grad(), guard(model):
            model(x)
            for tensor in model.state_dict().values():
                tensor[..., 0] = 1

    def run() -> None:
        with pytest.raises(HygieneError, match="small"):
            watched()

    assert threads_left_by(run) == 0


def test_a_parallel_operator_of_the_user_leaves_its_thread_team() -> None:
    large = torch.zeros(LARGE)
    assert threads_left_by(lambda: large.add_(1)) == THREADS - 1
