"""Forked children, such as the workers of a data loader: they hold no lock of their parent's and observe nothing.

A thread that held a lock while another one forked does not exist in the child, so the lock would stay held forever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Any
from weakref import WeakSet

_lock_owners: WeakSet[Any] = WeakSet()
_actions: list[Callable[[], object]] = []


def new_lock(owner: object) -> RLock:
    """Return a lock for the `_lock` attribute of an object or a Python module. A forked child replaces it by a new one.

    Always use it as `with owner._lock:`, which releases the lock that it acquired.
    """
    _lock_owners.add(owner)
    return RLock()


def run_in_child(action: Callable[[], object]) -> Callable[[], object]:
    """Call a function in each forked child, before any other code runs there. Usable as a decorator."""
    _actions.append(action)
    return action


def _after_fork() -> None:
    for owner in _lock_owners:
        owner._lock = RLock()
    for action in _actions:
        with suppress(Exception):  # one that fails must not prevent the others
            action()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
