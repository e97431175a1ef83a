"""The terms on which the guard of one test judges: what the test declares, how the run is set, what is known."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.policy import Policy, PolicyError
from pytest_evalmode.rules import RULE_NAMES, Rule, Violation
from pytest_evalmode.session import fixtures, user_hooks
from pytest_evalmode.session.guarded_test.failure import HygieneViolation
from pytest_evalmode.session.marks import policy_of
from pytest_evalmode.session.settings import SETTINGS, plain_nodeid
from pytest_evalmode.session.stash import DROPPED_COUNT, MODE_CHANGES

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.calls.mode_changes import ModeChanges


def policy_and_rules_of(item: pytest.Item) -> tuple[Policy, tuple[Rule, ...]]:
    """What a test declares, with the last word of its team, and the team's own rules."""
    try:
        own = user_hooks.collect_custom_rules(item.ihook)
        names = (*RULE_NAMES, *(rule.name for rule in own))
        return user_hooks.apply_policy_hook(item, policy_of(item, item.config.stash[SETTINGS], names), names), own
    except (PolicyError, user_hooks.HookError) as error:
        wrong = str(error)
    pytest.fail(wrong, pytrace=False)  # outside the except: it is to stand alone, not "during handling" of another


def new_guard(item: pytest.Item, policy: Policy, custom_rules: tuple[Rule, ...]) -> Guard:
    """A guard that judges as the run is set, and is told what its team wants and what is known."""
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.guards.config import GuardConfig

    settings = item.config.stash[SETTINGS]
    if settings.full_read:
        from pytest_evalmode.observe.state import write_tracking

        write_tracking.disable()
    terms = GuardConfig(
        strict=settings.strict,
        custom_rules=custom_rules,
        root=settings.root,
        test_files=(*item.config.getini("python_files"), "conftest.py", item.path.name),
        history=fixtures.get_history(item.config) if settings.strict else None,
        earlier_mode_changes=_switches(item.config),
        make_error=partial(HygieneViolation, marker=settings.marker),
        enforced=settings.mode == "enforce",
        filter_violations=partial(_told, item),
        select_failing=partial(failing_violations, item),
        record_details=settings.record_details,
    )
    return Guard(policy, terms)


def _switches(config: pytest.Config) -> ModeChanges:
    """Who switches models, in fixtures and in other tests too, from the first guard of the session on."""
    from pytest_evalmode.observe.calls import mode_changes
    from pytest_evalmode.observe.source.user_lines import UserLines

    if MODE_CHANGES not in config.stash:
        config.stash[MODE_CHANGES] = observer = mode_changes.ModeChanges(UserLines(config.stash[SETTINGS].root))
        mode_changes.train_patch.start(observer)
        config.add_cleanup(partial(mode_changes.train_patch.stop, observer))
    return config.stash[MODE_CHANGES]


def _told(item: pytest.Item, violations: list[Violation]) -> list[Violation]:
    """What no team drops; the rest is counted."""
    kept = user_hooks.apply_violation_hook(item, violations)
    item.stash[DROPPED_COUNT] = len(violations) - len(kept)
    return kept


def failing_violations(item: pytest.Item, violations: list[Violation]) -> list[Violation]:
    """The violations that are not known; none where the run only asks.

    A run that makes the baseline fails nothing, so that each test comes to its end; but a failure that is expected is
    none to list.
    """
    settings = item.config.stash[SETTINGS]
    if settings.suggest:
        return []
    if settings.update_baseline:
        return violations if item.get_closest_marker("xfail") is not None else []
    known = (settings.known or {}).get(plain_nodeid(item.nodeid, item.config), frozenset())
    return [violation for violation in violations if (violation.rule, violation.model) not in known]
