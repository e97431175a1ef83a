"""Reading a model leaves no thread behind: one that waits actively would take the cores from the user's operators.

OpenMP keeps a team for each thread that ever ran a parallel operator, and a team spins before it sleeps.
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
LARGE = 1 << 23  # float32: four pieces, so that all helpers have one

pytestmark = pytest.mark.skipif(not TASKS.exists(), reason="the system does not list the threads of a process")


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Thread]:
    """The threads that Python starts."""
    found: list[Thread] = []
    start = Thread.start

    def noted(self: Thread) -> None:
        found.append(self)
        start(self)

    monkeypatch.setattr(Thread, "start", noted)
    return found


@pytest.fixture(params=["off", "on"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """How often a window reads its model: only once where the kernel tells that nothing was written."""
    monkeypatch.setenv("EVALMODE_WRITES", request.param)
    write_tracking.reset()
    yield 2 if write_tracking.tracker() is None else 1
    write_tracking.reset()


class Large(nn.Module):
    """Holds tensors that several threads read; its forward runs no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(LARGE), requires_grad=False)
        self.register_buffer("turned", torch.zeros(1 << 10, 1 << 10).t())
        self.register_buffer("small", torch.zeros(1 << 10))

    def forward(self, x: Tensor) -> Tensor:
        return x


def tasks() -> set[str]:
    """The threads of this process, those of OpenMP included."""
    return {task.name for task in TASKS.iterdir()}


def threads_left_by(run: Callable[[], object]) -> int:
    """How many threads more there are once a thread has run this, which has no team of its own before."""
    found: list[int] = []

    def count() -> None:
        before = tasks()
        run()
        # One that Python has joined may take a moment to end.
        patience = iter(range(100))
        while tasks() - before and next(patience, None) is not None:
            sleep(0.01)
        found.append(len(tasks() - before))

    thread = Thread(target=count)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("strict", [False, True])
def test_a_window_leaves_none(strict: bool, reads: int, started: list[Thread]) -> None:
    model, x = Large().eval(), torch.zeros(3)

    def run() -> None:
        with torch.no_grad(), guard(model, strict=strict):
            model(x)

    assert threads_left_by(run) == 0
    assert len(started) == 1 + reads * (THREADS - 1), "each read with helpers"
    assert not any(thread.is_alive() for thread in started)


def test_what_has_changed_is_told_without_one() -> None:
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


def test_a_parallel_operator_of_the_users_does_leave_its_team() -> None:
    large = torch.zeros(LARGE)
    assert threads_left_by(lambda: large.add_(1)) == THREADS - 1
