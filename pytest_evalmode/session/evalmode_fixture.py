"""The `evalmode` fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


@pytest.fixture
def evalmode(request: pytest.FixtureRequest) -> Guard:
    """The guard of this test; requesting it guards an unmarked test.

    `watch(model)` watches a model from now on.  Use `with paused():` around code that trains
    (`frozen=` names modules that must not), and `with allow(...):` for exemptions in a part of the test.
    `violations` lists the violations so far, and `check()` raises them.
    """
    from pytest_evalmode.session.guarded_test import phases

    return phases.guard_of(request.node)
