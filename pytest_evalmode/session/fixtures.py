"""What fixtures hand to a test, and what ran meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import isasyncgenfunction, isgeneratorfunction, unwrap
from linecache import getline
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.session.stash import GUARD, HISTORY, RECORD_PROPERTY, RUNNING_ITEM

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.models.session_history import SessionHistory
    from pytest_evalmode.trace import Site

_WIDE = pytest.StashKey[dict[int, object]]()


def _open_guard(config: pytest.Config) -> Guard | None:
    item = config.stash.get(RUNNING_ITEM, None)
    return None if item is None else item.stash.get(GUARD, None)


def record_fixture_value(fixturedef: pytest.FixtureDef[Any], value: object, request: pytest.FixtureRequest) -> None:
    """Keep the value of a fixture that outlives a test, for as long as it lives, and that it was set up.

    A test in whose call it was set up is handed it now.
    """
    if fixturedef.scope != "function":
        request.config.stash.setdefault(_WIDE, {})[id(fixturedef)] = value
    if fixturedef.argname != "evalmode":
        _note_part("set-up", fixturedef, request)
    guard = _open_guard(request.config)
    if guard is not None:
        with guard.safely():
            at = _site(fixturedef, request.config)
            guard.watch_fixture_value(value, fixturedef.argname, shared=fixturedef.scope != "function", defined_at=at)


def begin_test(item: pytest.Item) -> None:
    """A test begins, its set-up included."""
    if HISTORY in item.config.stash:
        item.config.stash[HISTORY].global_state.begin_test()


def end_test(item: pytest.Item) -> None:
    """A test has ended, its teardown included."""
    if HISTORY in item.config.stash:
        guarded = any(name == RECORD_PROPERTY for name, _ in item.user_properties)
        item.config.stash[HISTORY].global_state.end_test(item.nodeid, guarded=guarded)


@contextmanager
def observe_fixture_setup(fixturedef: pytest.FixtureDef[Any], config: pytest.Config) -> Iterator[None]:
    """A fixture is set up: what one of wide scope sets in torch is meant to last.

    Where a test asks for it in its call, by `request.getfixturevalue`, its guard looks away.
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
    """The memory of the session, from the first time that it is asked for."""
    from pytest_evalmode.observe.models.session_history import SessionHistory

    if HISTORY not in config.stash:
        config.stash[HISTORY] = SessionHistory()
    return config.stash[HISTORY]


def record_event(
    config: pytest.Config, what: str, fixtures: Iterable[str], *, is_test: bool = True, is_installed: bool = False
) -> None:
    """Keep in mind that something ran that may have changed a shared model, once a strict guard has seen one."""
    if HISTORY in config.stash:
        from pytest_evalmode.observe.models.session_history import SessionEvent

        config.stash[HISTORY].record_event(SessionEvent(what, frozenset(fixtures), is_test, is_installed))


def forget_fixture(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """A fixture has been torn down; what does not yield has no teardown to speak of."""
    request.config.stash.get(_WIDE, {}).pop(id(fixturedef), None)
    if HISTORY in request.config.stash:
        request.config.stash[HISTORY].global_state.fixture_ended(id(fixturedef))
    was_set_up = HISTORY in request.config.stash and fixturedef.cached_result is not None
    if was_set_up and (isgeneratorfunction(fixturedef.func) or isasyncgenfunction(fixturedef.func)):
        _note_part("teardown", fixturedef, request)


def _note_part(part: str, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    if HISTORY in request.config.stash:
        what = f"the {part} of fixture {fixturedef.argname!r} for {request.node.nodeid or 'the session'}"
        record_event(request.config, what, fixturedef.argnames, is_test=False, is_installed=_is_installed(fixturedef))


def _is_installed(fixturedef: pytest.FixtureDef[Any]) -> bool:
    """Whether a fixture is a plugin's, of pytest's own say."""
    code = getattr(unwrap(fixturedef.func), "__code__", None)
    return code is not None and "site-packages" in Path(code.co_filename).parts


def _site(fixturedef: pytest.FixtureDef[Any], config: pytest.Config) -> Site | None:
    """Where a fixture of the user's stands; None for one of a plugin's, or of a parameter."""
    code = getattr(unwrap(fixturedef.func), "__code__", None)
    return None if code is None else _begin(code.co_filename, code, config.rootpath)


@cache  # each test that is handed the fixture asks; code alone does not differ by its file
def _begin(path: str, code: CodeType, root: Path) -> Site | None:
    """The line of the `def`, which comes after the decorators; None outside the root and in site-packages."""
    if not Path(path).is_relative_to(root):
        return None
    from pytest_evalmode.trace import Site

    file = Path(path).relative_to(root)
    if "site-packages" in file.parts:
        return None
    lines = [getline(path, code.co_firstlineno + i).strip() for i in range(_MOST_DECORATORS)]
    begins = next((i for i, line in enumerate(lines) if line.startswith(("def ", "async def "))), 0)
    return Site(file.as_posix(), code.co_firstlineno + begins, lines[begins])


_MOST_DECORATORS = 20


def values_passed_to(item: pytest.Item) -> Iterator[tuple[str, object, bool, Site | None]]:
    """The name and value of all that a test was handed, whether it outlives the test, and where its fixture stands.

    What a class keeps for its tests counts, as `setUpClass` puts it there.
    """
    wide = {id(value) for value in item.config.stash.get(_WIDE, {}).values()}
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name, value in getattr(item, "funcargs", {}).items():
        fixtures = definitions.get(name)
        yield name, value, id(value) in wide, _site(fixtures[-1], item.config) if fixtures else None
    instance = getattr(item, "instance", None)
    if instance is not None:
        yield from ((f"self.{name}", value, False, None) for name, value in getattr(instance, "__dict__", {}).items())
        for kind in type(instance).__mro__:
            yield from ((f"self.{name}", value, True, None) for name, value in vars(kind).items())


def fixtures_providing(models: Iterable[str], item: pytest.Item) -> list[str]:
    """The fixtures that handed these models to a test: a model is named after its fixture, and its place in that."""
    return [
        fixture
        for fixture in getattr(item, "funcargs", {})
        if any(name == fixture or name.startswith((f"{fixture}.", f"{fixture}[")) for name in models)
    ]


def fixture_line(fixture: str, item: pytest.Item) -> Site | None:
    """Where a fixture of a test is defined, if that is in the user's own code."""
    info = getattr(item, "_fixtureinfo", None)
    found = info.name2fixturedefs.get(fixture) if info is not None else None
    return _site(found[-1], item.config) if found else None
