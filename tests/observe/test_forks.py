"""Forked children: no lock of ours is held there, and nothing is observed."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.data import DataLoader, Dataset

import pytest_evalmode
from pytest_evalmode import GuardError, forks, guard
from pytest_evalmode.observe import patches
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.forwards import call_overrides
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import write_tracking
from tests.nets import Net, batch, rules, watching

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
ORIGINAL_CALL = nn.Module.__call__
SECONDS = 30


def in_child(function: Callable[[], object]) -> str:
    """Return what a function returns in a forked child, as text. Fails if the child hangs."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(function())
        except BaseException as error:
            text = repr(error)
        os.write(write_end, text.encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        ready = bool(select.select([pipe], [], [], SECONDS)[0])
        if not ready:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert ready, "the child hangs"
        return pipe.read()


class Sampler(nn.Module):
    """Has its own `__call__`."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 1


def patched() -> list[str]:
    """Return the functions that are replaced now.

    Another function than the original is no sign: `torch.compile` of an earlier test has wrapped `Module.__init__` for
    good.
    """
    names = [patch.name for patch in patches.TABLE if patch.observers or patch._current() is patch._replacement]
    return names + ["Sampler.__call__"] * hasattr(Sampler.__call__, "__wrapped__")


@pytest.mark.parametrize("strict", [False, True])
def test_a_child_has_no_patch_and_the_parent_keeps_its_own(strict: bool) -> None:
    with watching(strict=strict) as g:
        assert patched()
        assert in_child(patched) == "[]"
        assert in_child(lambda: dict(_global_optimizer_post_hooks)) == "{}"
        assert patched()
        Net()(batch())
    assert {"train-mode", "grad-mode"} <= rules(g)
    assert patched() == []


def test_locks_that_another_thread_holds_are_free_in_the_child() -> None:
    """A thread that reads a model holds the lock of the models, for example."""
    model, held, done = Net().eval(), threading.Event(), threading.Event()

    def run_and_close() -> object:
        model(batch())
        with pytest.raises(GuardError):
            g.__exit__(None, None, None)
        with watching() as inner:
            Net().train()(batch())
        return sorted(rules(inner))

    def hold_locks() -> None:
        locks = [owner._lock for owner in forks._lock_owners]
        for lock in locks:
            lock.acquire()
        held.set()
        done.wait()
        for lock in locks:
            lock.release()

    with torch.no_grad(), guard(model, strict=True) as g:
        model(batch())
        thread = threading.Thread(target=hold_locks)
        thread.start()
        held.wait()
        try:
            assert in_child(run_and_close) == "['state-mutated', 'train-mode']"
        finally:
            done.set()
            thread.join()


def test_every_lock_of_the_package_is_new_in_a_child() -> None:
    package = Path(pytest_evalmode.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [name for name, source in sources.items() if re.search(r"\bR?Lock\(\)", source)] == ["forks.py"]


def test_a_thread_that_reads_models_hangs_no_child() -> None:
    model = nn.Linear(2048, 2048).eval()
    small, x = Net().eval(), batch()
    stopping = threading.Event()

    def read_models() -> None:
        while not stopping.is_set():
            watch.add(model)
            watch.reset_baseline()

    with torch.no_grad(), guard() as g:
        watch = g.window.observers.watch
        thread = threading.Thread(target=read_models)
        thread.start()
        try:
            for _ in range(20):
                assert in_child(lambda: tuple(small(x).shape)) == "(8, 2)"
        finally:
            stopping.set()
            thread.join()


@pytest.mark.parametrize("model", [Net().eval(), Net().train()], ids=["clean", "violation"])
def test_a_guard_of_the_parent_has_no_result_in_the_child(model: nn.Module) -> None:
    def close() -> object:
        model(batch())
        with pytest.raises(GuardError, match="before the process was forked"):
            g.check()
        g.window.close()
        return g.violations, len(g.window.failures), g.window.is_open

    with torch.no_grad(), watching(model, strict=True, allow="grad-mode") as g:
        model(batch())
        g.violations  # noqa: B018  # what is known before the fork does not count either
        assert in_child(close) == "([], 1, False)"
    found = {"train-mode", "state-mutated"} if model.training else set()
    assert rules(g) == {*found, "unused-exemption"}


def test_contexts_that_are_open_at_the_fork_can_be_left_in_the_child() -> None:
    model = Net().eval()

    def leave() -> object:
        segment.__exit__(None, None, None)
        return g.violations, patched()

    with guard(model) as g:
        for segment in (g.paused(), g.allow("train-mode", reason="a test")):
            with segment:
                assert in_child(leave) == "([], [])"


def test_an_exception_that_ends_a_guard_in_the_child_stays_the_same() -> None:
    def fail() -> object:
        try:
            raise KeyError("mine")
        except KeyError as error:
            g.__exit__(KeyError, error, None)
            return type(error).__name__, "before the process was forked" in str(error.__notes__)

    with guard() as g:
        assert in_child(fail) == "('KeyError', True)"


def test_a_guard_that_is_opened_in_a_child_works() -> None:
    def observe() -> object:
        with watching(strict=True) as g, torch.no_grad():
            Net().train()(batch())
            Sampler().eval()(batch())
        return rules(g) >= {"train-mode"}, write_tracking.tracker(), patched(), nn.Module.__call__ is ORIGINAL_CALL

    assert in_child(observe) == "(True, None, [], True)"
    with guard():
        assert in_child(observe) == "(True, None, [], True)"


def test_an_observer_of_the_session_can_start_again_in_a_child() -> None:
    """That of `train()` observes fixtures too, and forked tests have their fixtures in the child."""
    observer, model = ModeChanges(UserLines()), Net()

    def start_again() -> object:
        running = observer.is_running
        observer.start()
        model.train()
        line, _ = observer.line_of_training(model)
        observer.stop()
        return running, line is not None, patched()

    observer.start()
    try:
        assert observer.is_running
        assert in_child(start_again) == "(False, True, [])"
        assert observer.is_running
    finally:
        observer.stop()
    assert not observer.is_running


class CallsModel(Dataset[Tensor]):
    """A dataset whose items run a module, as transforms of torchvision do."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        Net()(batch())
        return torch.tensor([nn.Module.__call__ is ORIGINAL_CALL, not patched(), not call_overrides._patches])


def test_the_workers_of_a_data_loader_are_not_observed() -> None:
    with guard(strict=True):
        Sampler()
        items = list(DataLoader(CallsModel(), num_workers=1, multiprocessing_context="fork"))
        assert torch.cat(items).all()
    with watching() as g, torch.no_grad():
        list(DataLoader(CallsModel(), num_workers=0))
    assert rules(g) == {"train-mode", "state-mutated"}


def test_an_action_that_fails_does_not_prevent_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail() -> None:
        raise RuntimeError("an internal error")

    monkeypatch.setattr(forks, "_actions", [fail, *forks._actions, lambda: done.append("last")])
    with guard():
        assert in_child(lambda: (done, patched())) == "(['last'], [])"
    assert done == []


def test_a_patch_that_cannot_be_removed_in_the_child_leaves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(observer: object) -> None:
        raise RuntimeError("an internal error")

    with guard():
        monkeypatch.setattr(patches.module_train, "stop", fail)
        try:
            assert in_child(patched) == "['train']"
        finally:
            monkeypatch.undo()


def test_the_timeout_of_these_tests_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SECONDS", 0.1)
    with pytest.raises(AssertionError, match="hangs"):
        in_child(lambda: time.sleep(60))


def test_locks_are_new_objects_of_their_owner() -> None:
    class Owner:
        def __init__(self) -> None:
            self._lock: Any = forks.new_lock(self)

    owner = Owner()
    lock = owner._lock
    assert in_child(lambda: owner._lock is lock) == "False"
    assert owner._lock is lock
    with lock:
        assert in_child(lambda: owner._lock.acquire(blocking=False)) == "True"
