"""A TestCase, which pytest runs otherwise: its set-up is part of the call, and its failure is not raised."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any
from unittest import TestCase

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


def testcase_exception(item: pytest.Item) -> BaseException | None:
    """What a TestCase failed or skipped with: its call returns as if all were well.

    There is no public way to ask; were `_excinfo` gone, the tests of TestCase would tell.
    """
    failures = getattr(item, "_excinfo", None) or [None]
    return getattr(failures[0], "value", None)


def pause_in_setup_methods(guard: Guard, item: pytest.Item) -> None:
    """A TestCase sets up and tears down inside pytest's call; fixture set-up is no inference."""
    instance = getattr(item, "instance", None)
    if not isinstance(instance, TestCase):
        return
    for name in ("setUp", "tearDown", "asyncSetUp", "asyncTearDown", "doCleanups"):
        original = getattr(instance, name, None)
        if original is not None:
            setattr(instance, name, _unobserved(guard, original))


def _unobserved(guard: Guard, function: Callable[[], Any]) -> Callable[[], Any]:
    if iscoroutinefunction(function):

        async def run_async() -> Any:
            with guard.paused():
                return await function()

        return run_async

    def run() -> Any:
        with guard.paused():
            return function()

    return run
