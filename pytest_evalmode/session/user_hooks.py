"""Calls of the hooks that users implement, and the validation of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
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
    known = {*rules, *policy.allow}  # the ini may name a rule that is defined for another folder only

    def is_valid(result: object) -> bool:
        return isinstance(result, Policy) and result.allow <= known

    _validate(hook, [result], is_valid, f"a Policy of these rules, or None: {', '.join(rules)}")
    return policy if result is None else result


def collect_hook_models(item: pytest.Item) -> list[tuple[str, nn.Module]]:
    """Return the models of `pytest_evalmode_models` with their names; a model without a name gets that of its type."""
    hook = item.ihook.pytest_evalmode_models
    expected = "models, in a mapping by name or in an iterable"
    models: list[tuple[str, nn.Module]] = []
    for result in _validate(hook, _as_lists(hook(item=item)), _are_models, expected):
        models.extend(result.items() if isinstance(result, Mapping) else ((type(m).__name__, m) for m in result))
    return models


def collect_custom_rules(hooks: Any) -> tuple[Rule, ...]:
    """Return the custom rules of `pytest_evalmode_rules`, for the test whose `ihook` is given."""
    hook = hooks.pytest_evalmode_rules
    results = _validate(hook, _as_lists(hook()), _are_rules, "an iterable of rules with unique names")
    rules = tuple(rule for result in results for rule in result)
    for name, count in Counter(rule.name for rule in rules).items():
        if count > 1:
            raise HookError(f"{hook.name}: {count} rules are named {name!r}; rule names must be unique")
    return rules


def apply_violation_hook(item: pytest.Item, violations: Iterable[Violation]) -> list[Violation]:
    """Return the violations without those that `pytest_evalmode_violation` drops."""
    hook = item.ihook.pytest_evalmode_violation
    reported = []
    for violation in violations:
        results = hook(item=item, violation=violation)
        _validate(hook, results, lambda result: isinstance(result, bool), "a bool or None")
        if False not in results:
            reported.append(violation)
    return reported


def _as_lists(results: list[Any]) -> list[Any]:
    """Convert iterables to lists, because an iterator could not be validated and then read again."""
    return [r if isinstance(r, Mapping) or not isinstance(r, Iterable) else list(r) for r in results]


def _validate(hook: Any, results: list[Any], is_valid: Callable[[Any], bool], expected: str) -> list[Any]:
    """Return the results if all are valid; otherwise raise HookError, which names the hook and its plugins."""
    for result in results:
        if result is not None and not is_valid(result):
            plugins = " or ".join(repr(each.plugin_name) for each in hook.get_hookimpls())
            kind = type(result).__name__
            raise HookError(f"{hook.name} of {plugins} returned {result!r} of type {kind}; expected {expected}")
    return results


def _are_models(result: object) -> bool:
    from torch import nn

    if isinstance(result, nn.Module) or not isinstance(result, Iterable):
        return False
    if isinstance(result, Mapping):
        return all(isinstance(n, str) and n and isinstance(model, nn.Module) for n, model in result.items())
    return all(isinstance(model, nn.Module) for model in result)


def _are_rules(result: object) -> bool:
    if not isinstance(result, list) or not all(isinstance(rule, Rule) for rule in result):
        return False
    names = [rule.name for rule in result]
    return len({*names, *RULE_NAMES}) == len(names) + len(RULE_NAMES)
