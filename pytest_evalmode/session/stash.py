"""What the hooks keep on tests and on the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.models.history import History

GUARD: pytest.StashKey[Guard] = pytest.StashKey()
"""The guard of a test, from its set-up to its teardown."""
MARKS: pytest.StashKey[list[pytest.Mark]] = pytest.StashKey()
"""The marks of a test from which its guard's policy was made."""
CALLING: pytest.StashKey[pytest.Item | None] = pytest.StashKey()
"""On the session's config, the test whose call is under way."""
HISTORY: pytest.StashKey[History] = pytest.StashKey()
"""What shared models were, once a strict guard has been made."""
PROPERTY = "evalmode"
"""The name under which a test's record travels in its `user_properties`."""
LOCK_PROPERTY = "evalmode-lock"
"""The name under which travels what a test has shown of what is locked."""


def forget_record(item: pytest.Item, name: str = PROPERTY) -> None:
    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] != name]
