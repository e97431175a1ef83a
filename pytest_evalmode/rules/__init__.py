"""All rules in the order in which they are reported, and `apply_rules()`, which applies them to a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, compress

from pytest_evalmode.rules import exemptions, forward_rules, leak_rules, lock_rules, state_rules
from pytest_evalmode.rules.exemptions import PolicySegments
from pytest_evalmode.rules.rule import Rule, RuleError, Violation, add_fixture, rule
from pytest_evalmode.trace import Leak, TensorChange, Trace, WatchedModel

__all__ = ["RULES", "RULE_NAMES", "Rule", "RuleError", "Violation", "add_fixture", "apply_rules", "join_traces", "rule"]

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
    """Return the violations of one window.

    Args:
        segments: The traces of the window in order, each with its policy.
        strict: Also apply the strict rules.
        user_rules: Rules of the `pytest_evalmode_rules` hook.
        finished: Whether the window ran to its end.  If not, no exemption is reported as unused.
    """
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


def _join_models(traces: Sequence[Trace]) -> tuple[WatchedModel, ...]:
    """Return each model once, as last seen, with its forwards of all traces."""
    models: dict[str, WatchedModel] = {}
    for model in chain.from_iterable(trace.models for trace in traces):
        before = models[model.name].forwards if model.name in models else 0
        models[model.name] = replace(model, forwards=before + model.forwards)
    return tuple(models.values())


def _join_leaks(leaks: Iterable[Leak]) -> tuple[Leak, ...]:
    """Join the leaks of consecutive segments; a value that ends as it began is not a leak."""
    joined: dict[tuple[str | None, str], Leak] = {}
    for leak in leaks:
        key = leak.model, leak.name
        joined[key] = replace(leak, before=joined[key].before) if key in joined else leak
    return tuple(leak for leak in joined.values() if leak.before != leak.after)


def join_traces(traces: Sequence[Trace]) -> Trace:
    """Return one trace for several; a tensor that changed in two of them has its first change."""
    changes: dict[tuple[str, str], TensorChange] = {}
    for change in chain.from_iterable(trace.changes for trace in traces):
        changes.setdefault((change.model, change.path), change)
    return Trace(
        models=_join_models(traces),
        calls=tuple(call for trace in traces for call in trace.calls),
        changes=tuple(changes.values()),
        steps=tuple(dict.fromkeys(step for trace in traces for step in trace.steps)),
        writes=tuple(dict.fromkeys(write for trace in traces for write in trace.writes)),
        gradients=tuple(dict.fromkeys(call for trace in traces for call in trace.gradients)),
        names=frozenset().union(*(trace.names for trace in traces)),
        loads=tuple(load for trace in traces for load in trace.loads),
        leaks=_join_leaks(leak for trace in traces for leak in trace.leaks),
        drifts=tuple(drift for trace in traces for drift in trace.drifts),
        global_drifts=tuple(drift for trace in traces for drift in trace.global_drifts),
        locks=tuple(change for trace in traces for change in trace.locks),
        needs_forward=any(trace.needs_forward for trace in traces),
        forwards=sum(trace.forwards for trace in traces),
        events=tuple(event for trace in traces for event in trace.events),
    )
