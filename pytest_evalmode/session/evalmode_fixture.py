"""The `evalmode` fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


@pytest.fixture
def evalmode(request: pytest.FixtureRequest) -> Guard:
    """The guard of this test; asking for it guards an unmarked test.

    `watch(model)` watches a model from now on, `paused()` is for code that may train, `allow(...)` for what is intended
    in a part of the test; `violations` tells what was found so far and `check()` raises it.
    """
    from pytest_evalmode.session.guarded_test import phases

    return phases.guard_of(request.node)
