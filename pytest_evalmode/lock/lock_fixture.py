"""The `evalmode_lock` fixture: the lock of one test, as pytest runs it."""

from __future__ import annotations

import sys
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_evalmode.lock.lock_file import LockError, lock_path
from pytest_evalmode.session import fixtures
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import GUARD, LOCK_PROPERTY, remove_records

if TYPE_CHECKING:
    from collections.abc import Callable

    from pluggy import Result
    from torch import nn

    from pytest_evalmode.lock.running_lock import RunningLock
    from pytest_evalmode.trace import Site

    M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def _telling(method: Callable[..., T]) -> Callable[..., T]:
    """Fail the test with what is wrong with its lock, alone: no line of ours is of use to anybody."""

    @wraps(method)
    def tell(*args: Any, **kwargs: Any) -> T:
        __tracebackhide__ = True
        try:
            return method(*args, **kwargs)
        except LockError as error:
            wrong = str(error)
        pytest.fail(wrong, pytrace=False)

    return tell


class EvaluationLock:
    """What was validated, against what this test uses.

    `model`, `inputs`, `preprocessing` and `outputs` each return their first argument.  What differs fails the test when
    it ends; `pytest --evalmode-update-lock` locks what a test that passes uses now.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._lock: RunningLock | None = None
        self._closed = False

    @_telling
    def model(self, model: M, name: str | None = None) -> M:
        """Lock a model: every parameter and persistent buffer.  Without a name it is its fixture's, or its type's."""
        from torch import nn

        if not isinstance(model, nn.Module):
            raise LockError(f"evalmode_lock.model(): {model!r:.80} is a {type(model).__name__}; it takes a module")
        lock = self._opened("model", name)
        if lock is not None:
            guard = self._item.stash.get(GUARD, None)
            prints = guard.last_fingerprints(model) if guard is not None else None
            lock.model(model, name or self._name_of(model), prints, self._site())
        return model

    @_telling
    def inputs(self, batch: T, name: str, *, rtol: float | None = None, atol: float | None = None) -> T:
        """Lock inputs: tensors, arrays, images, texts, and mappings, sequences and dataclasses of them.

        They are to be the same bit by bit, unless a tolerance is given.  Called for batch after batch under one name,
        it locks all their samples in order.
        """
        tolerance = _tolerance("inputs", rtol, atol)
        lock = self._opened("inputs", name)
        if lock is not None:
            lock.inputs(batch, name, self._site(), tolerance)
        return batch

    @_telling
    def preprocessing(self, transform: T, name: str) -> T:
        """Lock a transform, processor or tokenizer: its steps and their parameters."""
        lock = self._opened("preprocessing", name)
        if lock is not None:
            lock.preprocessing(transform, name, self._site())
        return transform

    @_telling
    def outputs(
        self,
        outputs: T,
        name: str,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        again: Callable[[Any], object] | None = None,
    ) -> T:
        """Lock outputs or metrics, within the tolerance of `torch.testing.assert_close`.

        `again` makes a metric anew of inputs.  Where the metric and the inputs changed, it is called when the test has
        ended, with the first of this run's inputs and with those that were locked: how much of it is theirs?
        """
        tolerance = _tolerance("outputs", rtol, atol)
        if again is not None and not callable(again):
            raise LockError(
                f"evalmode_lock.outputs(): again={again!r:.80} cannot be called; it takes a function of inputs"
            )
        lock = self._opened("outputs", name)
        if lock is not None:
            lock.outputs(outputs, name, self._site(), tolerance, again)
        return outputs

    def finish(self, outcome: Result[object]) -> None:
        """The call has ended: hand what differs to the guard of the test, which has one from now on."""
        from pytest_evalmode.session.guarded_test import phases

        self._closed = True
        if self._lock is None:
            return
        own = phases.failure_of(self._item, outcome)
        wrong = ""
        try:
            guard = phases.guard_at_end(self._item)
            with guard.safely():
                try:
                    # What was not clean would not be the second time: models in training mode move on.
                    aside = None if guard.violations else guard.paused
                    guard.add_lock_changes(*self._lock.close(finished=own is None, pause_guard=aside))
                    self._record(self._lock)
                except LockError as error:
                    wrong = str(error)
        except pytest.fail.Exception as error:  # of what its team's hooks say
            wrong = str(error)
        if wrong and own is None:
            outcome.force_exception(pytest.fail.Exception(wrong, pytrace=False))

    def _record(self, lock: RunningLock) -> None:
        """Enter what the test has shown, for its report to carry; a rerun's takes the place of the last."""
        remove_records(self._item, LOCK_PROPERTY)
        self._item.user_properties.append((LOCK_PROPERTY, lock.record()))

    def _opened(self, method: str, name: object) -> RunningLock | None:
        """The lock of this test; None where guarding is off."""
        if not (isinstance(name, str) and name) and (method != "model" or name is not None):
            raise LockError(f"evalmode_lock.{method}(): name={name!r} is no name; it takes a string that is not empty")
        if self._closed:
            raise LockError(f"evalmode_lock.{method}() was called after the test had ended; call it in the test")
        settings = self._item.config.stash[SETTINGS]
        if settings.mode == "off":
            return None
        if self._lock is None:
            try:
                import_module("safetensors")  # the lock asks for it once there are samples: too late to say this
                from pytest_evalmode.lock.running_lock import RunningLock
            except ImportError as error:
                missing = f"evalmode_lock needs numpy and safetensors ({error}): pip install 'pytest-evalmode[lock]'"
                raise LockError(missing) from None
            test = self._item.nodeid.partition("::")[2] or self._item.name
            self._lock = RunningLock(lock_path(self._item.path), test, update=settings.update_lock)
        return self._lock

    def _name_of(self, model: nn.Module) -> str:
        from pytest_evalmode.observe.models.discovery import find_models
        from pytest_evalmode.observe.modules import type_name

        for name, value, *_ in fixtures.values_passed_to(self._item):
            for path, found in find_models(value, name):
                if found is model:
                    return path
        return type_name(model)

    def _site(self) -> Site | None:
        from pytest_evalmode.observe.source.user_lines import UserLines

        return UserLines(self._item.config.stash[SETTINGS].root).find_line(sys._getframe())


def _tolerance(method: str, rtol: float | None, atol: float | None) -> dict[str, float | None]:
    if (rtol is None) != (atol is None):
        raise LockError(f"evalmode_lock.{method}(): rtol={rtol!r}, atol={atol!r}: give both, or neither")
    return {"rtol": rtol, "atol": atol}


LOCK: pytest.StashKey[EvaluationLock] = pytest.StashKey()
"""The lock of a test that asked for it."""


@pytest.fixture
def evalmode_lock(request: pytest.FixtureRequest) -> EvaluationLock:
    """What was validated, against what this test uses: `model`, `inputs`, `preprocessing`, `outputs`.

    Each returns its first argument.  `pytest --evalmode-update-lock` writes what is locked.
    """
    lock = request.node.stash[LOCK] = EvaluationLock(request.node)
    return lock
