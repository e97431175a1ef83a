"""What was found is entered on the test, for its report to carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.report.ledger import serialize_record, short_record
from pytest_evalmode.session import fixtures
from pytest_evalmode.session.settings import Settings
from pytest_evalmode.session.stash import (
    BYTES_AT_START,
    DROPPED_COUNT,
    RECORD_PROPERTY,
    SHORT_PROPERTIES,
    SUGGESTION_PROPERTY,
    remove_records,
)

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


def byte_counts() -> tuple[int, int]:
    """How many bytes of large tensors have been read, and how many did not have to be."""
    from pytest_evalmode.observe.state.digest_cache import byte_counts

    return byte_counts.read, byte_counts.skipped


def add_record(item: pytest.Item, guard: Guard, settings: Settings, *, finished: bool) -> None:
    """Enter what was found, for the report to carry; a rerun's takes the place of the last."""
    read, unread = byte_counts()
    before = item.stash.get(BYTES_AT_START, (read, unread))  # there is none if the window was never open
    found = serialize_record(
        policy=guard.policy,
        models=guard.models,
        violations=guard.violations,
        seconds=guard.seconds,
        exemptions=guard.used_exemptions((*guard.policy.exemptions, *settings.policy.exemptions)),
        guard_failed=bool(guard.failures),
        guarded=guard.was_opened,
        finished=finished,
        dropped=item.stash.get(DROPPED_COUNT, 0),
        timed="benchmark" in getattr(item, "fixturenames", ()) and item.config.pluginmanager.hasplugin("benchmark"),
        bytes_read=read - before[0],
        bytes_skipped=unread - before[1],
        page_data=_shown(item, guard, settings) if settings.record_details else None,
    )
    remove_records(item)
    item.user_properties.append((RECORD_PROPERTY, found))
    values = short_record(guard.models, guard.violations, guard.seconds)
    item.user_properties.extend(zip(SHORT_PROPERTIES, values, strict=True))


def _shown(item: pytest.Item, guard: Guard, settings: Settings) -> dict[str, Any]:
    from pytest_evalmode.report.page_data import collect_page_data

    names = [model.name for model in guard.models]
    handed = {
        name: site
        for name in fixtures.fixtures_providing(names, item)
        if (site := fixtures.fixture_line(name, item)) is not None
    }
    return collect_page_data(guard.trace, guard.violations, fixtures=handed, marker=settings.marker, root=settings.root)


def add_suggestion(item: pytest.Item, guard: Guard) -> None:
    """Enter what an unmarked test ran, or that the guard failed there; it is told of nothing else."""
    from pytest_evalmode.report.suggest import serialize_failure, serialize_suggestion

    found = None
    with guard.safely():
        found = serialize_suggestion(guard.trace, guard.violations)
    if guard.failures:
        found = serialize_failure(guard.failures[0])
    if found is not None:
        item.user_properties.append((SUGGESTION_PROPERTY, found))
