"""The fixtures `evalmode` and `evalmode_lock`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.lock.lock_fixture import EvaluationLock

LOCK: pytest.StashKey[EvaluationLock] = pytest.StashKey()
"""The lock of a test that requested `evalmode_lock`."""


@pytest.fixture
def evalmode(request: pytest.FixtureRequest) -> Guard:
    """The guard of this test; requesting it guards an unmarked test.

    `watch(model)` watches a model from now on.  Use `with paused():` around code that trains
    (`frozen=` names modules that must not), and `with allow(...):` for exemptions in a part of the test.
    `violations` lists the violations so far, and `check()` raises them.
    """
    from pytest_evalmode.session.guarded_test import phases

    return phases.guard_of(request.node)


@pytest.fixture
def evalmode_lock(request: pytest.FixtureRequest) -> EvaluationLock:
    """Compare a model, inputs, preprocessing and outputs with the validated ones in a lock file.

    Methods: `model`, `inputs`, `preprocessing` and `outputs`; each returns its first argument.
    `pytest --evalmode-update-lock` updates the lock files.
    """
    from pytest_evalmode.lock.lock_fixture import EvaluationLock

    lock = request.node.stash[LOCK] = EvaluationLock(request.node)
    return lock
