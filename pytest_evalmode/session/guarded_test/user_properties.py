"""What was found is entered on the test, for its report to carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.report.ledger import record, short
from pytest_evalmode.session import fixtures
from pytest_evalmode.session.settings import Settings
from pytest_evalmode.session.stash import DROPPED, PROPERTY, SHORT_PROPERTIES, SUGGESTION, TALLY, forget_record

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard


def bytes_read() -> tuple[int, int]:
    """How many bytes of large tensors have been read, and how many did not have to be."""
    from pytest_evalmode.observe.state.digest_cache import tally

    return tally.read, tally.unread


def enter(item: pytest.Item, guard: Guard, settings: Settings, *, finished: bool) -> None:
    """Enter what was found, for the report to carry; a rerun's takes the place of the last."""
    read, unread = bytes_read()
    before = item.stash.get(TALLY, (read, unread))  # there is none if the window was never open
    found = record(
        policy=guard.policy,
        models=guard.models,
        violations=guard.violations,
        seconds=guard.seconds,
        exemptions=guard.needed((*guard.policy.declared, *settings.policy.declared)),
        unjudged=bool(guard.failures),
        guarded=guard.watched,
        finished=finished,
        dropped=item.stash.get(DROPPED, 0),
        timed="benchmark" in getattr(item, "fixturenames", ()) and item.config.pluginmanager.hasplugin("benchmark"),
        read=read - before[0],
        unread=unread - before[1],
        shown=_shown(item, guard, settings) if settings.shown else None,
    )
    forget_record(item)
    item.user_properties.append((PROPERTY, found))
    values = short(guard.models, guard.violations, guard.seconds)
    item.user_properties.extend(zip(SHORT_PROPERTIES, values, strict=True))


def _shown(item: pytest.Item, guard: Guard, settings: Settings) -> dict[str, Any]:
    from pytest_evalmode.report.page_data import shown

    names = [model.name for model in guard.models]
    handed = {name: site for name in fixtures.givers(names, item) if (site := fixtures.line(name, item)) is not None}
    return shown(guard.trace, guard.violations, fixtures=handed, marker=settings.marker, root=settings.root)


def enter_suggestion(item: pytest.Item, guard: Guard) -> None:
    """Enter what an unmarked test ran, or that the guard failed there; it is told of nothing else."""
    from pytest_evalmode.report.suggest import suggestion, unknown

    found = None
    with guard.safely():
        found = suggestion(guard.trace, guard.violations)
    if guard.failures:
        found = unknown(guard.failures[0])
    if found is not None:
        item.user_properties.append((SUGGESTION, found))
