"""Support for unittest.TestCase: its setup runs inside pytest's call phase, and its failures are not raised."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any
from unittest import TestCase

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


def testcase_exception(item: pytest.Item) -> BaseException | None:
    """Return the exception with which a TestCase failed or skipped, because its call returns normally.

    pytest has no public API for this.  If `_excinfo` disappears, our tests with TestCase fail.
    """
    failures = getattr(item, "_excinfo", None) or [None]
    return getattr(failures[0], "value", None)


def pause_in_setup_methods(guard: Guard, item: pytest.Item) -> None:
    """Pause the guard during setUp and tearDown of a TestCase, which run inside pytest's call phase."""
    instance = getattr(item, "instance", None)
    if not isinstance(instance, TestCase):
        return
    for name in ("setUp", "tearDown", "asyncSetUp", "asyncTearDown"):
        original = getattr(instance, name, None)
        if original is not None and getattr(original, "__module__", None) not in _UNITTEST:
            setattr(instance, name, _paused_around(guard, original))
    # unittest's own method has no public way to tell whether there are cleanups, and a pause is not free.
    do_cleanups = instance.doCleanups
    run_cleanups = _paused_around(guard, do_cleanups)
    instance.doCleanups = (  # type: ignore[method-assign]
        lambda: run_cleanups() if getattr(instance, "_cleanups", True) else do_cleanups()
    )


_UNITTEST = ("unittest.case", "unittest.async_case")
"""The modules whose own setUp and tearDown are empty."""


def _paused_around(guard: Guard, function: Callable[[], Any]) -> Callable[[], Any]:
    if not iscoroutinefunction(function):
        return guard.paused()(function)

    async def run() -> Any:
        with guard.paused():
            return await function()

    return run
