"""Creation of the guard of a test from its marks, the settings of the run, user hooks and the baseline."""

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
    """Return the policy of a test and the custom rules, or fail the test if its marks or a user hook are invalid."""
    try:
        custom_rules = user_hooks.collect_custom_rules(item.ihook)
        names = (*RULE_NAMES, *(rule.name for rule in custom_rules))
        policy = policy_of(item, item.config.stash[SETTINGS], names)
        return user_hooks.apply_policy_hook(item, policy, names), custom_rules
    except (PolicyError, user_hooks.HookError) as error:
        message = str(error)
    pytest.fail(message, pytrace=False)  # outside the except clause: no "during handling of the above exception"


def new_guard(item: pytest.Item, policy: Policy, custom_rules: tuple[Rule, ...]) -> Guard:
    """Return the guard of a test, configured by the settings of the run."""
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.guards.config import GuardConfig

    settings = item.config.stash[SETTINGS]
    if settings.full_read:
        from pytest_evalmode.observe.state import write_tracking

        write_tracking.disable()
    config = GuardConfig(
        strict=settings.strict,
        custom_rules=custom_rules,
        root=settings.root,
        test_files=(*item.config.getini("python_files"), "conftest.py", item.path.name),
        history=fixtures.get_history(item.config) if settings.strict else None,
        earlier_mode_changes=_session_mode_changes(item.config),
        make_error=partial(HygieneViolation, marker=settings.marker),
        enforced=settings.mode == "enforce",
        filter_violations=partial(_drop_violations, item),
        select_failing=partial(failing_violations, item),
        record_details=settings.record_details,
    )
    return Guard(policy, config)


def _session_mode_changes(config: pytest.Config) -> ModeChanges:
    """Return the observer of `train()` and `eval()` calls in fixtures and tests.

    It is started with the first guard and stopped at the end of the session.
    """
    from pytest_evalmode.observe.calls import mode_changes
    from pytest_evalmode.observe.source.user_lines import UserLines

    if MODE_CHANGES not in config.stash:
        config.stash[MODE_CHANGES] = observer = mode_changes.ModeChanges(UserLines(config.stash[SETTINGS].root))
        mode_changes.train_patch.start(observer)
        config.add_cleanup(partial(mode_changes.train_patch.stop, observer))
    return config.stash[MODE_CHANGES]


def _drop_violations(item: pytest.Item, violations: list[Violation]) -> list[Violation]:
    """Return the violations that no user hook drops, and count the dropped ones."""
    reported = user_hooks.apply_violation_hook(item, violations)
    item.stash[DROPPED_COUNT] = len(violations) - len(reported)
    return reported


def failing_violations(item: pytest.Item, violations: list[Violation]) -> list[Violation]:
    """Return the violations that fail a test: those that the baseline does not list.

    None fail under `--evalmode-suggest`, or while the baseline is updated, so that `evalmode.check()` ends no test.  A
    test marked `xfail` still fails during an update: an expected failure must not be listed in the baseline.
    """
    settings = item.config.stash[SETTINGS]
    if settings.suggest:
        return []
    if settings.update_baseline:
        return violations if item.get_closest_marker("xfail") is not None else []
    known = (settings.known or {}).get(plain_nodeid(item.nodeid, item.config), frozenset())
    return [violation for violation in violations if (violation.rule, violation.model) not in known]
