"""Asks the hooks that teams implement, and checks what they answer."""

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
    """A hook of a team's returned something that makes no sense."""


def check_ini_rules(exempt: Mapping[str, tuple[str, ...]], config: pytest.Config) -> None:
    """Raise UsageError if the ini exempts from a rule that neither we have nor a team."""
    try:
        read_policy("evalmode ini", exempt, (*RULE_NAMES, *(rule.name for rule in collect_custom_rules(config.hook))))
    except (PolicyError, HookError) as error:
        raise pytest.UsageError(str(error)) from None


def explain_rules(name: str, config: pytest.Config) -> str:
    """For `--evalmode-rules`: a table of all rules, or the page of one; of a team's own, its line of the table."""
    from pytest_evalmode.report.message import rules_table
    from pytest_evalmode.rules.pages import page_of

    try:
        own = {rule.name: rule for rule in collect_custom_rules(config.hook)}
        if not name:
            return rules_table((*RULES, *own.values()))
        return rules_table([own[name]]) if name in own else page_of(name, also=own)
    except (LookupError, HookError) as error:
        raise pytest.UsageError(f"--evalmode-rules: {error}") from None


def apply_policy_hook(item: pytest.Item, policy: Policy, rules: Collection[str]) -> Policy:
    """The policy of a test as its team wants it; of these rules."""
    hook = item.ihook.pytest_evalmode_policy
    answer = hook(item=item, policy=policy)
    known = {*rules, *policy.allow}  # the ini may name a rule that only another folder has
    valid = f"a Policy of these rules, or None: {', '.join(rules)}"
    _check(hook, [answer], lambda answer: _is_policy(answer, known), valid, item=item, policy=policy)
    return policy if answer is None else answer


def collect_hook_models(item: pytest.Item) -> list[tuple[str, nn.Module]]:
    """The further models of a test; one without a name is called after its type."""
    answers = item.ihook.pytest_evalmode_models(item=item)
    valid = "models, in a mapping by name or in an iterable"
    found: list[tuple[str, nn.Module]] = []
    for answer in _check(item.ihook.pytest_evalmode_models, _listed(answers), _are_models, valid, item=item):
        named = answer.items() if isinstance(answer, Mapping) else ((type(m).__name__, m) for m in answer)
        found.extend(named)
    return found


def collect_custom_rules(hooks: Any) -> tuple[Rule, ...]:
    """The team's own rules, for the test whose `ihook` this is."""
    hook = hooks.pytest_evalmode_rules
    answers = _check(hook, _listed(hook()), _are_rules, "an iterable of rules, none named as another")
    found = tuple(rule for answer in answers for rule in answer)
    names = Counter(rule.name for rule in found)
    for name, times in names.items():
        if times > 1:
            raise HookError(f"{hook.name}: {times} rules are named {name!r}; the name of a rule is its own")
    return found


def apply_violation_hook(item: pytest.Item, violations: Iterable[Violation]) -> list[Violation]:
    """The violations that no team drops."""
    hook = item.ihook.pytest_evalmode_violation
    kept = []
    for violation in violations:
        answers = hook(item=item, violation=violation)
        _check(hook, answers, lambda answer: isinstance(answer, bool), "a bool or None", item=item, violation=violation)
        if False not in answers:
            kept.append(violation)
    return kept


def _listed(answers: list[Any]) -> list[Any]:
    """An iterator can be read once only: it is checked, and then used."""
    return [a if isinstance(a, Mapping) or not isinstance(a, Iterable) else list(a) for a in answers]


def _check(hook: Any, answers: list[Any], valid: Callable[[Any], bool], takes: str, **arguments: object) -> list[Any]:
    """The answers, if all are valid; else HookError, which names the hook and the plugin that answered wrongly."""
    for answer in answers:
        if answer is not None and not valid(answer):
            plugin = _culprit(hook, answer, arguments)
            raise HookError(f"{hook.name} of {plugin} returned {answer!r}, a {type(answer).__name__}; it takes {takes}")
    return answers


def _culprit(hook: Any, wrong: object, arguments: Mapping[str, object]) -> str:
    """Who implements the hook; pluggy does not keep who answered what, so the one that gives that answer again."""
    implementations = hook.get_hookimpls()
    if len(implementations) > 1:
        repeat = [i for i in implementations if _repeats(i, wrong, arguments)]
        implementations = repeat or implementations
    return " or ".join(repr(i.plugin_name) for i in implementations)


def _repeats(implementation: Any, wrong: object, arguments: Mapping[str, object]) -> bool:
    try:
        answer = implementation.function(*(arguments[name] for name in implementation.argnames))
    except Exception:
        return False
    return bool(answer == wrong or _listed([answer]) == [wrong])


def _is_policy(answer: object, rules: set[str]) -> bool:
    return isinstance(answer, Policy) and answer.allow <= rules


def _are_models(answer: object) -> bool:
    from torch import nn

    if isinstance(answer, nn.Module) or not isinstance(answer, Iterable):
        return False
    if isinstance(answer, Mapping):
        return all(isinstance(n, str) and n and isinstance(model, nn.Module) for n, model in answer.items())
    return all(isinstance(model, nn.Module) for model in answer)


def _are_rules(answer: object) -> bool:
    if not isinstance(answer, list) or not all(isinstance(rule, Rule) for rule in answer):
        return False
    names = [rule.name for rule in answer]
    return len({*names, *RULE_NAMES}) == len(names) + len(RULE_NAMES)
