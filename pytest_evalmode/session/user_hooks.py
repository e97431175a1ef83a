"""Calls of the hooks that users implement, and the validation of their results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.policy import Policy, PolicyError, read_policy
from pytest_evalmode.rules import RULE_NAMES, RULES, Rule, Violation

if TYPE_CHECKING:
    from torch import nn


class HookError(ValueError):
    """Raised when a user's hook returns an invalid value."""

    __module__ = "pytest_evalmode"


def check_ini_rules(exemptions: Mapping[str, tuple[str, ...]], config: pytest.Config) -> None:
    """Raise UsageError if the ini allows a rule that neither the plugin nor a user hook defines."""
    try:
        names = (*RULE_NAMES, *(rule.name for rule in collect_custom_rules(config.hook)))
        read_policy("evalmode ini", exemptions, names)
    except (PolicyError, HookError) as error:
        raise pytest.UsageError(str(error)) from None


def explain_rules(name: str, config: pytest.Config) -> str:
    """Return the output of `--evalmode-rules`: a table of all rules, or the page of one.

    A custom rule has no page; its entry in the table is returned.
    """
    from pytest_evalmode.report.message import rules_table
    from pytest_evalmode.rules.pages import page_of

    try:
        custom = {rule.name: rule for rule in collect_custom_rules(config.hook)}
        if not name:
            return rules_table((*RULES, *custom.values()))
        return rules_table([custom[name]]) if name in custom else page_of(name, also=custom)
    except (LookupError, HookError) as error:
        raise pytest.UsageError(f"--evalmode-rules: {error}") from None


def apply_policy_hook(item: pytest.Item, policy: Policy, rules: Collection[str]) -> Policy:
    """Return the policy of a test after `pytest_evalmode_policy`, which may use these rules only."""
    hook = item.ihook.pytest_evalmode_policy
    result = hook(item=item, policy=policy)
    if result is None:
        return policy
    known = {*rules, *policy.allow}  # the ini may name a rule that is defined for another folder only
    if isinstance(result, Policy) and result.allow <= known:
        return result
    raise _invalid(hook, result, f"a Policy of these rules, or None: {', '.join(rules)}")


def collect_hook_models(item: pytest.Item) -> list[tuple[str, nn.Module]]:
    """Return the models of `pytest_evalmode_models` with their names; a model without a name gets that of its type."""
    from torch import nn

    hook = item.ihook.pytest_evalmode_models
    models: list[tuple[str, nn.Module]] = []
    for result in hook(item=item):
        pairs: list[tuple[object, object]] = [("", None)]
        if isinstance(result, Mapping):
            pairs = list(result.items())
        elif isinstance(result, Iterable) and not isinstance(result, nn.Module):
            pairs = [(type(model).__name__, model) for model in result]
        for name, model in pairs:
            if not (isinstance(name, str) and name and isinstance(model, nn.Module)):
                raise _invalid(hook, result, "models, in a mapping by name or in an iterable")
            models.append((name, model))
    return models


def collect_custom_rules(hooks: Any) -> tuple[Rule, ...]:
    """Return the custom rules of `pytest_evalmode_rules`, for the test whose `ihook` is given."""
    hook = hooks.pytest_evalmode_rules
    rules: list[Rule] = []
    for result in hook():
        added = list(result) if isinstance(result, Iterable) else [None]
        for rule in added:
            if not isinstance(rule, Rule):
                raise _invalid(hook, result, "an iterable of rules")
            if rule.name in (*RULE_NAMES, *(other.name for other in rules)):
                raise _invalid(hook, result, f"rules with unique names, but {rule.name!r} is taken")
            rules.append(rule)
    return tuple(rules)


def apply_violation_hook(item: pytest.Item, violations: Iterable[Violation]) -> list[Violation]:
    """Return the violations without those that `pytest_evalmode_violation` drops."""
    hook = item.ihook.pytest_evalmode_violation
    reported = []
    for violation in violations:
        results = hook(item=item, violation=violation)
        for result in results:
            if not isinstance(result, bool):
                raise _invalid(hook, result, "a bool or None")
        if False not in results:
            reported.append(violation)
    return reported


def _invalid(hook: Any, result: object, expected: str) -> HookError:
    """Return the error for an invalid result.  pluggy does not say which plugin returned it, so all are named."""
    plugins = " or ".join(repr(each.plugin_name) for each in hook.get_hookimpls())
    kind = type(result).__name__
    return HookError(f"{hook.name} of {plugins} returned {result!r} of type {kind}; expected {expected}")
