"""The values that fixtures pass to a test, and the record of the tests and fixtures that ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import isasyncgenfunction, isgeneratorfunction, unwrap
from linecache import getline
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.session.stash import GUARD, HISTORY, RECORD_PROPERTY, RUNNING_ITEM

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.models.session_history import SessionHistory
    from pytest_evalmode.trace import Site

_SHARED_VALUES = pytest.StashKey[dict[int, object]]()


def _open_guard(config: pytest.Config) -> Guard | None:
    item = config.stash.get(RUNNING_ITEM, None)
    return None if item is None else item.stash.get(GUARD, None)


def record_fixture_value(fixturedef: pytest.FixtureDef[Any], value: object, request: pytest.FixtureRequest) -> None:
    """Record that a fixture was set up, and its value.

    Values that outlive a test are kept until the fixture is torn down.  If a test set the fixture up in its call, by
    `request.getfixturevalue`, the test's guard starts watching the value.
    """
    shared = fixturedef.scope != "function"
    if shared:
        request.config.stash.setdefault(_SHARED_VALUES, {})[id(fixturedef)] = value
    if fixturedef.argname != "evalmode":
        _record_fixture_event("setup", fixturedef, request)
    guard = _open_guard(request.config)
    if guard is not None:
        with guard.window.safely():
            line = _definition_line(fixturedef, request.config)
            guard.window.watch_fixture_value(value, fixturedef.argname, shared=shared, defined_at=line)


@contextmanager
def observe_global_state(item: pytest.Item) -> Iterator[None]:
    """Record torch's global state before the setup of a test and after its teardown."""
    stash = item.config.stash
    if HISTORY in stash:
        stash[HISTORY].global_state.begin_test()
    yield
    if HISTORY in stash:
        guarded = RECORD_PROPERTY in dict(item.user_properties)
        stash[HISTORY].global_state.end_test(item.nodeid, guarded=guarded)


@contextmanager
def observe_fixture_setup(fixturedef: pytest.FixtureDef[Any], config: pytest.Config) -> Iterator[None]:
    """Observe the setup of a fixture: global state that a shared fixture sets is meant to last.

    If a test requests the fixture in its call, by `request.getfixturevalue`, the test's guard is paused meanwhile.
    """
    guard = _open_guard(config)
    with nullcontext() if guard is None else guard.paused():
        if fixturedef.scope == "function" or HISTORY not in config.stash:
            yield
            return
        from pytest_evalmode.observe.state.flag_snapshots import read_global_flags

        before = read_global_flags()
        yield
        config.stash[HISTORY].global_state.fixture_began(id(fixturedef), before)


def get_history(config: pytest.Config) -> SessionHistory:
    """Return the session's history of shared models and global state; the first call creates it."""
    from pytest_evalmode.observe.models.session_history import SessionHistory

    if HISTORY not in config.stash:
        config.stash[HISTORY] = SessionHistory()
    return config.stash[HISTORY]


def record_event(
    config: pytest.Config, name: str, fixtures: Iterable[str], *, is_test: bool = True, is_installed: bool = False
) -> None:
    """Record that a test or fixture ran, which may have changed a shared model; only if the session has a history."""
    if HISTORY in config.stash:
        from pytest_evalmode.observe.models.session_history import SessionEvent

        config.stash[HISTORY].record_event(SessionEvent(name, frozenset(fixtures), is_test, is_installed))


def forget_fixture(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Forget the value of a fixture that was torn down and, if the fixture has teardown code, record that it ran."""
    request.config.stash.get(_SHARED_VALUES, {}).pop(id(fixturedef), None)
    if HISTORY in request.config.stash:
        request.config.stash[HISTORY].global_state.fixture_ended(id(fixturedef))
    was_set_up = HISTORY in request.config.stash and fixturedef.cached_result is not None
    if was_set_up and (isgeneratorfunction(fixturedef.func) or isasyncgenfunction(fixturedef.func)):
        _record_fixture_event("teardown", fixturedef, request)


def _record_fixture_event(part: str, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    if HISTORY in request.config.stash:
        from pytest_evalmode.observe.source.user_code import is_installed

        event = f"the {part} of fixture {fixturedef.argname!r} for {request.node.nodeid or 'the session'}"
        code = getattr(unwrap(fixturedef.func), "__code__", None)
        installed = code is not None and is_installed(Path(code.co_filename))
        record_event(request.config, event, fixturedef.argnames, is_test=False, is_installed=installed)


def _definition_line(fixturedef: pytest.FixtureDef[Any], config: pytest.Config) -> Site | None:
    """Return the line that defines a fixture; None outside user code, and for a parameter."""
    code = getattr(unwrap(fixturedef.func), "__code__", None)
    return None if code is None else _def_line(code.co_filename, code, config.rootpath)


@cache  # by path too: code objects of two files compare equal if their source is the same
def _def_line(path: str, code: CodeType, root: Path) -> Site | None:
    """Return the line of the `def`, after the decorators; None outside user code."""
    from pytest_evalmode.observe.source.user_code import user_path
    from pytest_evalmode.trace import Site

    file = user_path(path, root.resolve())
    if file is None:
        return None
    lines = [getline(path, code.co_firstlineno + i).strip() for i in range(_MAX_DECORATOR_LINES)]
    offset = next((i for i, line in enumerate(lines) if line.startswith(("def ", "async def "))), 0)
    return Site(file, code.co_firstlineno + offset, lines[offset])


_MAX_DECORATOR_LINES = 20


def values_passed_to(item: pytest.Item) -> Iterator[tuple[str, object, bool, Site | None]]:
    """Yield the values that a test gets from its fixtures, its instance and its class (as set by `setUpClass`).

    Each is a tuple: its name, the value, whether it outlives the test, and the line that defines its fixture.
    """
    shared = {id(value) for value in item.config.stash.get(_SHARED_VALUES, {}).values()}
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name, value in getattr(item, "funcargs", {}).items():
        fixturedefs = definitions.get(name)
        yield name, value, id(value) in shared, _definition_line(fixturedefs[-1], item.config) if fixturedefs else None
    instance = getattr(item, "instance", None)
    if instance is not None:
        yield from ((f"self.{name}", value, False, None) for name, value in getattr(instance, "__dict__", {}).items())
        for cls in type(instance).__mro__[:-1]:  # a TestCase has hundreds of methods, and `object` has more
            values = ((name, value) for name, value in vars(cls).items() if type(value) is not FunctionType)
            yield from ((f"self.{name}", value, True, None) for name, value in values)
