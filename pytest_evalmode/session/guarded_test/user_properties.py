"""The results of a test in its `user_properties`, which xdist sends to the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.report.ledger import serialize_record
from pytest_evalmode.session.settings import Settings
from pytest_evalmode.session.stash import (
    BYTES_AT_START,
    DROPPED_COUNT,
    RECORD_PROPERTY,
    SUGGESTION_PROPERTY,
    remove_records,
)

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


def read_byte_counts() -> tuple[int, int]:
    """Return how many bytes of large tensors were read so far, and how many were skipped as unmodified."""
    from pytest_evalmode.observe.state.digest_cache import byte_counts

    return byte_counts.read, byte_counts.skipped


def add_record(item: pytest.Item, guard: Guard, settings: Settings, *, finished: bool) -> None:
    """Add the record of a guarded test; it replaces that of an earlier run."""
    read, skipped = read_byte_counts()
    # BYTES_AT_START is not set if the window was never open.
    read_before, skipped_before = item.stash.get(BYTES_AT_START, (read, skipped))
    window = guard.window
    policy = window.combined_policy
    record = serialize_record(
        guard.violations,
        window.models,
        policy,
        window.seconds,
        exemptions=window.segments.used_exemptions((*policy.exemptions, *settings.policy.exemptions)),
        unjudged=bool(window.failures),
        guarded=window.was_opened,
        finished=finished,
        dropped=item.stash.get(DROPPED_COUNT, 0),
        read=read - read_before,
        unread=skipped - skipped_before,
        shown=_page_data(guard, settings) if settings.record_details else {},
    )
    remove_records(item)
    item.user_properties.append((RECORD_PROPERTY, record))


def _page_data(guard: Guard, settings: Settings) -> dict[str, Any]:
    from pytest_evalmode.report.page_data import collect_page_data

    window, marker = guard.window, settings.marker
    lines = dict(window.fixtures[model.name] for model in window.models if model.name in window.fixtures)
    return collect_page_data(window.trace, guard.violations, fixtures=lines, marker=marker, root=settings.root)


def add_suggestion(item: pytest.Item, guard: Guard) -> None:
    """Add the models that an unmarked test ran, or the error if the guard failed in it."""
    from pytest_evalmode.report.suggest import serialize_failure, serialize_suggestion

    suggestion = None
    with guard.window.safely():
        suggestion = serialize_suggestion(guard.window.trace, guard.violations)
    if guard.window.failures:
        suggestion = serialize_failure(guard.window.failures[0])
    if suggestion is not None:
        item.user_properties.append((SUGGESTION_PROPERTY, suggestion))
