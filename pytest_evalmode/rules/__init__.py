"""All rules in the order in which they are reported, and `apply_rules()`, which applies them to a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from pytest_evalmode.rules import exemptions, forward_rules, leak_rules, lock_rules, state_rules
from pytest_evalmode.rules.exemptions import PolicySegments
from pytest_evalmode.rules.rule import Rule, RuleError, Violation, add_fixture, rule
from pytest_evalmode.trace import Trace, join_traces

__all__ = ["RULES", "RULE_NAMES", "Rule", "RuleError", "Violation", "add_fixture", "apply_rules", "rule"]

RULES: tuple[Rule, ...] = (
    forward_rules.train_mode,
    forward_rules.grad_mode,
    forward_rules.batch_stats,
    forward_rules.random_forward,
    forward_rules.unregistered_module,
    state_rules.state_mutated,
    state_rules.buffer_mutated,
    state_rules.input_mutated,
    state_rules.attribute_mutated,
    state_rules.state_drifted,
    state_rules.partial_load,
    leak_rules.model_leaked,
    leak_rules.global_leaked,
    forward_rules.no_forward,
    lock_rules.model_changed,
    lock_rules.preprocessing_changed,
    lock_rules.inputs_changed,
    lock_rules.outputs_changed,
    exemptions.unused_exemption,
)
RULE_NAMES = tuple(each.name for each in RULES)


def apply_rules(
    segments: PolicySegments, *, strict: bool = False, user_rules: Sequence[Rule] = (), finished: bool = True
) -> list[Violation]:
    """Return the violations of one window.  If it did not run to its end, no exemption is reported as unused."""
    rules = [each for each in (*RULES, *user_rules) if strict or each.level != "strict"]
    unused = tuple(exemptions.find_unused(segments, rules)) if strict and finished else ()
    traces = [exemptions.remove_exempted(trace, policy) for trace, policy in segments]
    # A rule applies to the segments that do not allow it, joined.  Most rules share the same ones.
    joined: dict[tuple[bool, ...], Trace] = {}
    violations: list[Violation] = []
    for each in rules:
        applies = tuple(each.name not in policy.allow for _, policy in segments)
        if any(applies):
            if applies not in joined:
                joined[applies] = replace(join_traces(list(compress(traces, applies))), unused_exemptions=unused)
            violations += each.violations(joined[applies])
    return [exemptions.add_near_misses(violation, segments) for violation in violations]
