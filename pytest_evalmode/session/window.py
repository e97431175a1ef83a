"""The window of one test: its guard is made at set-up, open for the call, and heard at the end."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest, TestCase

import pytest

from pytest_evalmode.errors import EvalModeWarning
from pytest_evalmode.policy import Policy, PolicyError
from pytest_evalmode.report.ledger import record, short
from pytest_evalmode.rules import RULE_NAMES, Rule, RuleError, Violation
from pytest_evalmode.session import fixtures, teams
from pytest_evalmode.session.marks import policy_of
from pytest_evalmode.session.settings import SETTINGS, Settings, plain_id
from pytest_evalmode.session.stash import (
    CALLING,
    DROPPED,
    GUARD,
    KEPT,
    MARKS,
    MODELS,
    PROPERTY,
    SHORT_PROPERTIES,
    STEPS,
    SUGGESTION,
    TALLY,
    forget_record,
)
from pytest_evalmode.trace import Site

if TYPE_CHECKING:
    from pluggy import Result

    from pytest_evalmode.guards import Guard
    from pytest_evalmode.session.verdict import HygieneViolation

_HERE = str(Path(__file__).parent.parent) + os.sep
_WITHDRAWN = (pytest.skip.Exception, pytest.xfail.Exception, SkipTest, pytest.exit.Exception, KeyboardInterrupt)
"""What is raised to have no result, of a test or of the whole run: nobody then hears what was found."""
_LET_PASS = (
    "  warnings are errors here; to be told of this one and no more, add it to what filters them:\n"
    '    -W "default::pytest_evalmode.EvalModeWarning"\n'
    '    filterwarnings = ["error", "default::pytest_evalmode.EvalModeWarning"]'
)


def prepare(item: pytest.Item) -> None:
    """Give a test its guard, a new one for each rerun.  Fails the test if it asks for one that makes no sense."""
    policy, own = _declared(item)
    item.stash[GUARD] = _new_guard(item, policy, own)
    item.stash[MARKS] = _marks(item)


def guard_of(item: pytest.Item) -> Guard:
    """The guard of a test that asks for it; one that never opens where guarding is off."""
    if GUARD in item.stash:
        return item.stash[GUARD]
    if item.config.stash[SETTINGS].mode == "off":
        from pytest_evalmode.guards import Guard, Terms

        return Guard(terms=Terms(rules=teams.rules(item.ihook)))
    prepare(item)
    if item.config.stash.get(CALLING, None) is item:
        _open(item.stash[GUARD], item)
    return item.stash[GUARD]


def begin(item: pytest.Item) -> None:
    """The call of a guarded test begins; what marked it as it was set up counts."""
    if GUARD not in item.stash:
        prepare(item)
    guard = item.stash[GUARD]
    if item.stash[MARKS] != _marks(item):
        guard.declare(_declared(item)[0])
    _look_away_from_fixtures_of_unittest(guard, item)
    _open(guard, item)


def failure_of(item: pytest.Item, outcome: Result[object]) -> BaseException | None:
    """What the call of a test ended with, if it did not pass."""
    return outcome.exception if outcome.exception is not None else _failure_in_unittest(item)


def guard_at_end(item: pytest.Item) -> Guard:
    """The guard of a test whose call has ended; that of a test without one never opened."""
    if GUARD not in item.stash:
        prepare(item)
    return item.stash[GUARD]


def end(item: pytest.Item, outcome: Result[object]) -> None:
    """The call of a test has ended; it fails with HygieneViolation if it passed without having been clean."""
    guard = item.stash[GUARD]
    own = failure_of(item, outcome)
    settings = item.config.stash[SETTINGS]
    marked = item.get_closest_marker(settings.marker) is not None
    withdrawn = isinstance(own, _WITHDRAWN)
    if KEPT in item.stash:
        item.stash[KEPT].stop()
        item.stash[MODELS] = guard.living
    guard.close(name=item.nodeid, finished=own is None, needs_forward=marked, heard=not withdrawn)
    if STEPS in item.stash:
        with guard.safely():
            _suggest(item, guard)
        return
    with guard.safely():
        if guard.watched or guard.violations or guard.failures:
            _record(item, guard, settings, finished=own is None)
    with guard.safely():
        if own is not None:
            _drop_our_frames(own)
        failing = _failing(item, guard.violations)
        if own is not None and guard.violations:
            _explain(own, guard)
        elif failing:
            _tell(item, failing, outcome, warn=settings.mode == "warn")


def tell_failure(item: pytest.Item, outcome: Result[object]) -> None:
    """Let a test err whose guard failed, whatever its own result was; in any case let go of the guard."""
    guard = item.stash[GUARD]
    del item.stash[GUARD]
    if not guard.failures or item.config.stash[SETTINGS].suggest:
        return
    from pytest_evalmode.errors import GuardError
    from pytest_evalmode.guards import failure

    first = guard.failures[0]
    error = GuardError(str(first)) if isinstance(first, (teams.HookError, RuleError)) else failure(guard.failures)
    own = outcome.exception
    if isinstance(own, (pytest.exit.Exception, KeyboardInterrupt)):
        own.add_note(f"\n{error}")
    elif isinstance(own, Exception | pytest.fail.Exception):
        outcome.force_exception(
            BaseExceptionGroup("the teardown of the test failed, and so did its guard", [own, error])
        )
    else:
        outcome.force_exception(error)


def keep_error(error: BaseException, report: pytest.TestReport) -> None:
    """An expected failure excuses the test, in its teardown too; not the guard."""
    from pytest_evalmode.errors import GuardError

    if isinstance(error, GuardError) or (isinstance(error, BaseExceptionGroup) and error.subgroup(GuardError)):
        report.outcome = "failed"
        report.__dict__.pop("wasxfail", None)


def _marks(item: pytest.Item) -> list[pytest.Mark]:
    return list(item.iter_markers(item.config.stash[SETTINGS].marker))


def _declared(item: pytest.Item) -> tuple[Policy, tuple[Rule, ...]]:
    """What a test declares, with the last word of its team, and the team's own rules."""
    try:
        own = teams.rules(item.ihook)
        names = (*RULE_NAMES, *(rule.name for rule in own))
        return teams.policy(item, policy_of(item, item.config.stash[SETTINGS], names), names), own
    except (PolicyError, teams.HookError) as error:
        wrong = str(error)
    pytest.fail(wrong, pytrace=False)  # outside the except: it is to stand alone, not "during handling" of another


def _new_guard(item: pytest.Item, policy: Policy, own: tuple[Rule, ...]) -> Guard:
    from pytest_evalmode.guards import Guard, Terms

    settings = item.config.stash[SETTINGS]
    if settings.full_read:
        from pytest_evalmode.observe.state import writes

        writes.switch_off()
    terms = Terms(
        strict=settings.strict,
        rules=own,
        root=settings.root,
        tests=(*item.config.getini("python_files"), "conftest.py", item.path.name),
        history=fixtures.history(item.config) if settings.strict else None,
        verdict=partial(_verdict(), marker=settings.marker),
        enforced=settings.mode == "enforce",
        tell=partial(_told, item),
        fails=partial(_failing, item),
        shown=settings.shown,
    )
    return Guard(policy, terms)


def _told(item: pytest.Item, violations: list[Violation]) -> list[Violation]:
    """What no team drops; the rest is counted."""
    kept = teams.told(item, violations)
    item.stash[DROPPED] = len(violations) - len(kept)
    return kept


def _failing(item: pytest.Item, violations: list[Violation]) -> list[Violation]:
    """The violations that are not known; none where the run only asks.

    A run that makes the baseline fails nothing, so that each test comes to its end; but a failure that is expected is
    none to list.
    """
    settings = item.config.stash[SETTINGS]
    if settings.suggest:
        return []
    if settings.update_baseline:
        return violations if item.get_closest_marker("xfail") is not None else []
    known = (settings.known or {}).get(plain_id(item.nodeid, item.config), frozenset())
    return [violation for violation in violations if (violation.rule, violation.model) not in known]


def _tally() -> tuple[int, int]:
    """How many bytes of large tensors have been read, and how many did not have to be."""
    from pytest_evalmode.observe.state.memory import tally

    return tally.read, tally.unread


def _open(guard: Guard, item: pytest.Item) -> None:
    settings = item.config.stash[SETTINGS]
    item.stash[TALLY] = _tally()
    if settings.suggest and not settings.guards(item):
        from pytest_evalmode.observe.calls.beside.steps import Steps

        item.stash[STEPS] = Steps(lambda: guard.living)
    if item.config.getoption("usepdb", False):
        from pytest_evalmode.observe.calls.kept import Kept

        item.stash[KEPT] = Kept()
    guard.open()
    with guard.safely():
        for name, value, shared, at in fixtures.handed_to(item):
            guard.watch_inside(value, name, shared=shared, at=at)
        for name, model in teams.models(item):
            guard.watch_inside(model, name, shared=True)


def _record(item: pytest.Item, guard: Guard, settings: Settings, *, finished: bool) -> None:
    """Enter what was found, for the report to carry; a rerun's takes the place of the last."""
    read, unread = _tally()
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
    from pytest_evalmode.report.shown import shown

    names = [model.name for model in guard.models]
    handed = {name: site for name in fixtures.givers(names, item) if (site := fixtures.line(name, item)) is not None}
    return shown(guard.trace, guard.violations, fixtures=handed, marker=settings.marker, root=settings.root)


def _suggest(item: pytest.Item, guard: Guard) -> None:
    """Enter what an unmarked test ran; it is told of nothing else."""
    from pytest_evalmode.report.suggest import suggestion

    steps = item.stash[STEPS]
    del item.stash[STEPS]
    steps.stop()
    found = suggestion(guard.trace, guard.violations, steps.models)
    if found is not None:
        item.user_properties.append((SUGGESTION, found))


def _tell(item: pytest.Item, violations: list[Violation], outcome: Result[object], *, warn: bool) -> None:
    """Fail the test, or warn, at the user's line at fault."""
    error: BaseException = _verdict()(violations, item.config.stash[SETTINGS].marker)
    file, line = _place(violations[0].at, item)
    if warn:
        try:
            warnings.warn_explicit(EvalModeWarning(str(error)), None, file, line)
            return
        except EvalModeWarning:  # warnings are errors here
            error = EvalModeWarning(f"{error}\n\n{_LET_PASS}")
    try:
        _raise_at(file, line, {**_at_hand(item, violations), "error": error})
    except type(error) as located:
        _drop_our_frames(located)
        outcome.force_exception(located)


def _place(site: Site | None, item: pytest.Item) -> tuple[str, int]:
    """The user's line at fault; where none is known, that of the test."""
    path, line, _ = item.location
    return str(item.config.rootpath / (site.file if site else path)), site.line if site else (line or 0) + 1


def _raise_at(file: str, line: int, names: dict[str, object]) -> None:
    """Raise `error` as if from the user's line: there `--tb=line`, JUnit, editors and `--pdb` look for it.

    Our own lines would help nobody.  `names` are what a debugger finds there.
    """
    exec(compile("raise error", file, "exec").replace(co_firstlineno=line), names)


def _at_hand(item: pytest.Item, violations: list[Violation]) -> dict[str, object]:
    """What a debugger is to find where it stops: the violations, the model, and the test's own arguments."""
    models = item.stash.get(MODELS, {})
    found: dict[str, object] = {
        "violations": violations,
        "models": models,
        "model": models.get(violations[0].model or ""),
    }
    instance = getattr(item, "instance", None)
    return found | ({} if instance is None else {"self": instance}) | getattr(item, "funcargs", {})


def _explain(error: BaseException, guard: Guard) -> None:
    """Add what was found to a test's own failure: often it is the reason."""
    from pytest_evalmode.errors import HygieneError
    from pytest_evalmode.session.verdict import NOTE

    if isinstance(error, (_verdict(), HygieneError, *_WITHDRAWN)):
        return
    told = f"{NOTE}  {guard.verdict()}"
    if isinstance(error, pytest.fail.Exception) and not error.pytrace:
        error.msg = f"{error.msg}\n{told}"  # pytest prints the message alone, without notes
    else:
        error.add_note(told)


def _drop_our_frames(error: BaseException) -> None:
    """Take the frames of the guard out of a traceback: `--tb=native` would print them, one for each module."""
    kept = []
    traceback = error.__traceback__
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_HERE):
            kept.append(traceback)
        traceback = traceback.tb_next
    for before, after in zip(kept, [*kept[1:], None], strict=True):
        before.tb_next = after
    error.__traceback__ = kept[0] if kept else None


def _verdict() -> type[HygieneViolation]:
    from pytest_evalmode.session.verdict import HygieneViolation

    return HygieneViolation


def _failure_in_unittest(item: pytest.Item) -> BaseException | None:
    """What a TestCase failed or skipped with: its call returns as if all were well.

    There is no public way to ask; were `_excinfo` gone, the tests of TestCase would tell.
    """
    failures = getattr(item, "_excinfo", None) or [None]
    return getattr(failures[0], "value", None)


def _look_away_from_fixtures_of_unittest(guard: Guard, item: pytest.Item) -> None:
    """A TestCase sets up and tears down inside pytest's call; fixture set-up is no inference."""
    instance = getattr(item, "instance", None)
    if not isinstance(instance, TestCase):
        return
    for name in ("setUp", "tearDown", "asyncSetUp", "asyncTearDown", "doCleanups"):
        original = getattr(instance, name, None)
        if original is not None:
            setattr(instance, name, _unobserved(guard, original))


def _unobserved(guard: Guard, function: Callable[[], Any]) -> Callable[[], Any]:
    if iscoroutinefunction(function):

        async def run_async() -> Any:
            with guard.paused():
                return await function()

        return run_async

    def run() -> Any:
        with guard.paused():
            return function()

    return run
