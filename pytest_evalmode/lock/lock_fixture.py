"""The value of the fixture `evalmode_lock`, which connects the lock of a test to pytest."""

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


def _fails_test(method: Callable[..., T]) -> Callable[..., T]:
    """Turn a LockError into a failure of the test, without a traceback into the plugin."""

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> T:
        __tracebackhide__ = True
        try:
            return method(*args, **kwargs)
        except LockError as error:
            message = str(error)
        pytest.fail(message, pytrace=False)

    return wrapper


class EvaluationLock:
    """Compares the model, data and outputs of a test with its lock file.

    `model`, `inputs`, `preprocessing` and `outputs` each return their first argument. Differences fail the test when it
    ends. `pytest --evalmode-update-lock` updates the lock from a test that passes.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._lock: RunningLock | None = None
        self._closed = False

    @_fails_test
    def model(self, model: M, name: str | None = None) -> M:
        """Lock every parameter and persistent buffer of a model.

        Args:
            model: The model; wrappers such as `DataParallel` are ignored.
            name: The name of the lock entry; by default the model's fixture, else its type.

        Returns:
            The model.
        """
        from torch import nn

        if not isinstance(model, nn.Module):
            raise LockError(f"evalmode_lock.model(): expected a torch.nn.Module, got {type(model).__name__}")
        lock = self._opened("model", name)
        if lock is not None:
            guard = self._item.stash.get(GUARD, None)
            fingerprints = guard.window.last_fingerprints(model) if guard is not None else None
            lock.model(model, name or self._name_of(model), fingerprints, self._site())
        return model

    @_fails_test
    def inputs(self, batch: T, name: str, *, rtol: float | None = None, atol: float | None = None) -> T:
        """Lock a batch of inputs. Call it for each batch: the samples of one name are compared in order.

        Args:
            batch: Tensors, arrays, images, texts, or mappings, sequences and dataclasses of them. The first dimension
                of an array is the batch; any shape and dtype.
            name: The name of the lock entry.
            rtol: The relative tolerance. Without tolerances the inputs must be identical bit for bit.
            atol: The absolute tolerance; pass both or neither.

        Returns:
            The batch.
        """
        tolerance = _tolerance("inputs", rtol, atol)
        lock = self._opened("inputs", name)
        if lock is not None:
            lock.inputs(batch, name, self._site(), tolerance)
        return batch

    @_fails_test
    def preprocessing(self, transform: T, name: str) -> T:
        """Lock the steps of a transform, processor or tokenizer, and their parameters.

        Args:
            transform: A transform, a function, or a dict or list of parameters.
            name: The name of the lock entry.

        Returns:
            The transform.
        """
        lock = self._opened("preprocessing", name)
        if lock is not None:
            lock.preprocessing(transform, name, self._site())
        return transform

    @_fails_test
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

        Args:
            outputs: Tensors, arrays or numbers, or mappings and sequences of them; any shape and dtype.
            name: The name of the lock entry.
            rtol: The relative tolerance; by default that of `assert_close` for the dtype.
            atol: The absolute tolerance; pass both or neither.
            again: A function that computes the metric from a batch of inputs. If the metric and the inputs changed, it
                is called after the test with the locked inputs and with this run's, to say how much the inputs explain.

        Returns:
            The outputs.
        """
        tolerance = _tolerance("outputs", rtol, atol)
        if again is not None and not callable(again):
            raise LockError(f"evalmode_lock.outputs(): again must be a function of the inputs, not {again!r:.80}")
        lock = self._opened("outputs", name)
        if lock is not None:
            lock.outputs(outputs, name, self._site(), tolerance, again)
        return outputs

    def finish(self, outcome: Result[object]) -> None:
        """Compare when the call phase ends, and pass the differences to the test's guard, creating one if needed."""
        self._closed = True
        if self._lock is None:
            return
        from pytest_evalmode.session.guarded_test import phases

        own_failure = phases.failure_of(self._item, outcome)
        message = ""
        try:
            guard = phases.guard_at_end(self._item)
            with guard.window.safely():
                try:
                    # Do not compute metrics again after violations: a model in training mode would change further.
                    pause_guard = None if guard.violations else guard.paused
                    changes = self._lock.close(finished=own_failure is None, pause_guard=pause_guard)
                    guard.window.add_lock_changes(changes)
                    self._record(self._lock)
                except LockError as error:
                    message = str(error)
        except pytest.fail.Exception as error:  # from the user hooks that configure the guard
            message = str(error)
        if message and own_failure is None:
            outcome.force_exception(pytest.fail.Exception(message, pytrace=False))

    def _record(self, lock: RunningLock) -> None:
        """Attach the record of the lock to the test's report, and replace the record of an earlier run."""
        remove_records(self._item, LOCK_PROPERTY)
        self._item.user_properties.append((LOCK_PROPERTY, lock.record()))

    def _opened(self, method: str, name: object) -> RunningLock | None:
        """Return the lock of this test; None with `--evalmode=off`."""
        if not (isinstance(name, str) and name) and (method != "model" or name is not None):
            raise LockError(f"evalmode_lock.{method}(): name must be a non-empty string, not {name!r}")
        if self._closed:
            raise LockError(f"evalmode_lock.{method}() was called after the test ended; call it during the test")
        settings = self._item.config.stash[SETTINGS]
        if settings.mode == "off":
            return None
        if self._lock is None:
            try:
                # Otherwise safetensors is only imported with the first samples, too late for this message.
                import_module("safetensors")
                from pytest_evalmode.lock.running_lock import RunningLock
            except ImportError as error:
                install = "run pip install 'pytest-evalmode[lock]'"
                raise LockError(f"evalmode_lock requires numpy and safetensors ({error}): {install}") from None
            test = self._item.nodeid.partition("::")[2] or self._item.name
            self._lock = RunningLock(lock_path(self._item.path), test, update=settings.update_lock)
        return self._lock

    def _name_of(self, model: nn.Module) -> str:
        from pytest_evalmode.observe.models.discovery import find_models
        from pytest_evalmode.observe.modules import type_name

        for name, value, *_ in fixtures.values_passed_to(self._item):
            for path, each in find_models(value, name):
                if each is model:
                    return path
        return type_name(model)

    def _site(self) -> Site | None:
        from pytest_evalmode.observe.source.user_lines import UserLines

        return UserLines(self._item.config.stash[SETTINGS].root).find_line(sys._getframe())


def _tolerance(method: str, rtol: float | None, atol: float | None) -> dict[str, float | None]:
    if (rtol is None) != (atol is None):
        got = f"got rtol={rtol!r}, atol={atol!r}"
        raise LockError(f"evalmode_lock.{method}(): pass both rtol and atol, or neither ({got})")
    return {"rtol": rtol, "atol": atol}
