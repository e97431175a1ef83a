"""The results of a test in its `user_properties`, which xdist sends to the controller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.report.records import serialize_record
from pytest_evalmode.session.settings import Settings
from pytest_evalmode.session.stash import DROPPED_COUNT, RECORD_PROPERTY, SUGGESTION_PROPERTY, remove_records

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


def add_record(item: pytest.Item, guard: Guard, settings: Settings, *, finished: bool) -> None:
    """Add the record of a guarded test; it replaces that of an earlier run."""
    window = guard.window
    policy = window.combined_policy
    page_data: Mapping[str, Any] = {}
    if settings.record_details:
        from pytest_evalmode.report.page_data import collect_page_data

        lines = dict(window.fixtures[model.name] for model in window.models if model.name in window.fixtures)
        page_data = collect_page_data(window.trace, guard.violations, lines, settings.marker, settings.root)
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
        shown=page_data,
    )
    remove_records(item)
    item.user_properties.append((RECORD_PROPERTY, record))


def add_suggestion(item: pytest.Item, guard: Guard) -> None:
    """Add the models that an unmarked test ran, or the error if the guard failed in it."""
    from pytest_evalmode.report.suggest import Suggestion, describe_inference

    suggestion: Suggestion | None = None
    with guard.window.safely():
        suggestion = describe_inference(guard.window.trace, guard.violations)
    if guard.window.failures:
        suggestion = {"failure": repr(guard.window.failures[0])}
    if suggestion is not None:
        item.user_properties.append((SUGGESTION_PROPERTY, json.dumps(suggestion)))
