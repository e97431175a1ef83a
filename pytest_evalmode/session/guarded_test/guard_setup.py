"""Creates the guard of a test from its marks, the settings of the run and user hooks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.policy import ARGUMENTS, Policy, PolicyError, read_policy
from pytest_evalmode.rules import RULE_NAMES, Rule
from pytest_evalmode.session import fixtures, user_hooks
from pytest_evalmode.session.guarded_test.item_reporter import ItemReporter
from pytest_evalmode.session.settings import SETTINGS, Settings
from pytest_evalmode.session.stash import MODE_CHANGES

if TYPE_CHECKING:
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.observe.calls.mode_changes import ModeChanges


def policy_and_rules_of(item: pytest.Item) -> tuple[Policy, tuple[Rule, ...]]:
    """Return the policy of a test and the custom rules, or fail the test if its marks or a user hook are invalid."""
    try:
        custom_rules = user_hooks.collect_custom_rules(item.ihook)
        names = (*RULE_NAMES, *(rule.name for rule in custom_rules))
        policy = _policy_of(item, item.config.stash[SETTINGS], names)
        return user_hooks.apply_policy_hook(item, policy, names), custom_rules
    except (PolicyError, user_hooks.HookError) as error:
        message = str(error)
    pytest.fail(message, pytrace=False)  # outside the except clause: no "during handling of the above exception"


def _policy_of(item: pytest.Item, settings: Settings, rules: Collection[str]) -> Policy:
    """Return the policy of a test: the exemptions of the ini and of all its marks, combined."""
    policy = replace(settings.policy, exemptions=())  # whether the ini's are used is checked over the whole suite
    where = f"@pytest.mark.{settings.marker}"
    for mark in reversed(list(item.iter_markers(settings.marker))):
        if mark.args:
            names = ", ".join(f"{name}=" for name in ARGUMENTS)
            raise PolicyError(f"{where} takes keyword arguments only ({names}), got {mark.args[0]!r}")
        policy |= read_policy(where, mark.kwargs, rules)
    return policy


def new_guard(item: pytest.Item) -> Guard:
    """Return the guard of a test, configured by its marks, user hooks and the settings of the run."""
    from pytest_evalmode.guards import Guard
    from pytest_evalmode.guards.config import GuardConfig
    from pytest_evalmode.observe import patches

    patches.keep_in_place()  # until the next test that is not guarded
    policy, custom_rules = policy_and_rules_of(item)
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
        record_details=settings.record_details,
    )
    return Guard(policy, config, reporter=ItemReporter(item))


def _session_mode_changes(config: pytest.Config) -> ModeChanges:
    """Return the observer of `train()` and `eval()` calls in fixtures and tests.

    It is started with the first guard and stopped at the end of the session.
    """
    from pytest_evalmode.observe.calls import mode_changes
    from pytest_evalmode.observe.source.user_lines import UserLines

    if MODE_CHANGES not in config.stash:
        config.stash[MODE_CHANGES] = observer = mode_changes.ModeChanges(UserLines(config.stash[SETTINGS].root))
        config.add_cleanup(observer.stop)
    if not config.stash[MODE_CHANGES].is_running:  # the first time, and in a forked child
        config.stash[MODE_CHANGES].start()
    return config.stash[MODE_CHANGES]
