"""Keys of the data that the hooks store on tests and on the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.calls.mode_changes import ModeChanges
    from pytest_evalmode.observe.models.session_history import SessionHistory

GUARD: pytest.StashKey[Guard] = pytest.StashKey()
"""The guard of a test, from its setup to its teardown."""
MARKS: pytest.StashKey[list[pytest.Mark]] = pytest.StashKey()
"""The marks that the guard of a test was configured by."""
RUNNING_ITEM: pytest.StashKey[pytest.Item | None] = pytest.StashKey()
"""On the config: the test whose call is running."""
DROPPED_COUNT: pytest.StashKey[int] = pytest.StashKey()
"""How many violations of a test were dropped by user hooks."""
HISTORY: pytest.StashKey[SessionHistory] = pytest.StashKey()
"""On the config: the history of shared models and global state, once there is a strict guard."""
MODE_CHANGES: pytest.StashKey[ModeChanges] = pytest.StashKey()
"""On the config: the `train()` and `eval()` calls of the session, once there is a guard."""
RECORD_PROPERTY = "evalmode"
"""The key of a guarded test's record in `user_properties`, which carries it to the controller."""
SUGGESTION_PROPERTY = "evalmode-suggestion"
"""The key of the models that an unmarked test ran, for `--evalmode-suggest`."""
LOCK_PROPERTY = "evalmode-lock"
"""The key of the lock entries that a test used."""


def remove_records(item: pytest.Item, *names: str) -> None:
    """Remove what an earlier run of a test recorded: the properties with these names or, without names, its record."""
    removed = names or (RECORD_PROPERTY, SUGGESTION_PROPERTY)
    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] not in removed]
