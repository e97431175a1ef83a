"""What the hooks keep on tests and on the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.calls.mode_changes import ModeChanges
    from pytest_evalmode.observe.forwards.keep_alive import KeepAlive
    from pytest_evalmode.observe.models.session_history import SessionHistory

GUARD: pytest.StashKey[Guard] = pytest.StashKey()
"""The guard of a test, from its set-up to its teardown."""
MARKS: pytest.StashKey[list[pytest.Mark]] = pytest.StashKey()
"""The marks of a test from which its guard's policy was made."""
RUNNING_ITEM: pytest.StashKey[pytest.Item | None] = pytest.StashKey()
"""On the session's config, the test whose call is under way."""
DROPPED_COUNT: pytest.StashKey[int] = pytest.StashKey()
"""How many violations of a test a hook wants not told."""
BYTES_AT_START: pytest.StashKey[tuple[int, int]] = pytest.StashKey()
"""How many bytes had been read, and not been read, as the window of a test began."""
MODELS: pytest.StashKey[dict[str, nn.Module]] = pytest.StashKey()
"""The models of a test by name, kept for a debugger."""
KEEP_ALIVE: pytest.StashKey[KeepAlive] = pytest.StashKey()
"""What keeps the models of a test alive for a debugger."""
HISTORY: pytest.StashKey[SessionHistory] = pytest.StashKey()
"""What shared models were, once a strict guard has been made."""
MODE_CHANGES: pytest.StashKey[ModeChanges] = pytest.StashKey()
"""Who has switched models, once a guard has been made."""
RECORD_PROPERTY = "evalmode"
"""The name under which a test's record travels in its `user_properties`."""
SUGGESTION_PROPERTY = "evalmode-suggestion"
"""The name under which travels what an unmarked test ran."""
LOCK_PROPERTY = "evalmode-lock"
"""The name under which travels what a test has shown of what is locked."""


SHORT_PROPERTIES = tuple(f"evalmode_{name}" for name in ("violations", "rules", "models", "forwards", "seconds"))
"""Beside the record, what a person reads in JUnit's XML."""


def remove_records(item: pytest.Item, *names: str) -> None:
    """Take out what an earlier run of a test entered: what is called so, or its record."""
    gone = names or (RECORD_PROPERTY, SUGGESTION_PROPERTY, *SHORT_PROPERTIES)
    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] not in gone]
