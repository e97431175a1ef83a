"""The value of the fixture `evalmode_lock`, which connects the lock of a test to pytest."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_evalmode import forks
from pytest_evalmode.lock import host
from pytest_evalmode.lock.lock_file import LockError, lock_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pluggy import Result
    from torch import nn

    from pytest_evalmode.lock.running_lock import RunningLock
    from pytest_evalmode.trace import LockChange, Site

    M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class EvaluationLock:
    """Compares the model, data and outputs of a test with its lock file.

    `model`, `inputs`, `preprocessing` and `outputs` each return their first argument. Differences fail the test when it
    ends. `pytest --evalmode-update-lock` updates the lock from a test that passes.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._running: RunningLock | None = None
        self._closed = False
        self._lock = forks.new_lock(self)

    def model(self, model: M, name: str | None = None) -> M:
        """Lock every parameter and persistent buffer of a model.

        Args:
            model: The model; wrappers such as `DataParallel` are ignored.
            name: The name of the lock entry; by default the model's fixture, else its type.

        Returns:
            The model.
        """
        from torch import nn

        with self._opened("model", name) as lock:
            if not isinstance(model, nn.Module):
                raise LockError(f"evalmode_lock.model(): expected a torch.nn.Module, got {type(model).__name__}")
            if lock is not None:
                fingerprints = host.last_fingerprints(model, self._item)
                lock.model(model, name or host.name_of(model, self._item), fingerprints, self._find_site())
        return model

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
        with self._opened("inputs", name) as lock:
            if lock is not None:
                lock.add("inputs", name, batch, (rtol, atol), self._find_site)
        return batch

    def preprocessing(self, transform: T, name: str) -> T:
        """Lock the steps of a transform, processor or tokenizer, and their parameters.

        Args:
            transform: A transform, a function, or a dict or list of parameters.
            name: The name of the lock entry.

        Returns:
            The transform.
        """
        with self._opened("preprocessing", name) as lock:
            if lock is not None:
                lock.preprocessing(transform, name, self._find_site())
        return transform

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
        with self._opened("outputs", name) as lock:
            if again is not None and not callable(again):
                raise LockError(f"evalmode_lock.outputs(): again must be a function of the inputs, not {again!r:.80}")
            if lock is not None:
                lock.add("outputs", name, outputs, (rtol, atol), self._find_site, again)
        return outputs

    def finish(self, outcome: Result[object]) -> None:
        """Compare when the call phase ends, and pass the differences to the test's guard, creating one if needed."""
        self._closed = True
        if self._running is None:
            return
        try:
            host.report_changes(self._item, outcome, partial(self._close, self._running))
        except (LockError, pytest.fail.Exception) as error:  # the latter from the user hooks that configure the guard
            outcome.force_exception(_failure(error))

    def _close(
        self, lock: RunningLock, finished: bool, pause_guard: Callable[[], AbstractContextManager[None]] | None
    ) -> list[LockChange]:
        changes = lock.close(finished=finished, pause_guard=pause_guard, current_tests=self._current_tests)
        host.attach_record(self._item, lock.record())
        return changes

    def _find_site(self) -> Site | None:
        return host.find_site(host.settings_of(self._item.config).root)

    def _current_tests(self) -> set[Path]:
        """Return the lock files of this run's tests."""
        return {lock_path(item.path, _test_of(item)) for item in self._item.session.items}

    @contextmanager
    def _opened(self, method: str, name: object) -> Iterator[RunningLock | None]:
        """Use the lock of this test, which is None with `--evalmode=off`; a LockError fails the test."""
        try:
            with self._lock:
                if not (isinstance(name, str) and name) and (method != "model" or name is not None):
                    raise LockError(f"evalmode_lock.{method}(): name must be a non-empty string, not {name!r}")
                if self._closed:
                    message = f"evalmode_lock.{method}() was called after the test ended; call it during the test"
                    raise LockError(message)
                if self._running is None:
                    self._running = self._start()
                yield self._running
        except LockError as error:
            raise _failure(error) from None

    def _start(self) -> RunningLock | None:
        settings = host.settings_of(self._item.config)
        if settings.mode == "off":
            return None
        try:
            # Otherwise safetensors is only imported with the first samples, too late for this message.
            import_module("safetensors")
            from pytest_evalmode.lock.running_lock import RunningLock
        except ImportError as error:
            install = "run pip install 'pytest-evalmode[lock]'"
            raise LockError(f"evalmode_lock requires numpy and safetensors ({error}): {install}") from None
        return RunningLock(self._item.path, _test_of(self._item), update=settings.update_lock)


def _test_of(item: pytest.Item) -> str:
    """Return the node id of a test without the file."""
    return item.nodeid.partition("::")[2] or item.name


def _failure(error: BaseException) -> BaseException:
    """Return the failure of the test, without a traceback into the plugin."""
    return pytest.fail.Exception(str(error), pytrace=False)
