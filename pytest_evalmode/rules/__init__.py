"""The rules, by name, in the order in which they are told; and how a window is judged by them."""

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
    """What the segments of one window break, each under the policy that held while it ran.

    `more` are a team's own rules.  A window that is not `finished` may yet need its exemptions.
    """
    rules = [each for each in (*RULES, *user_rules) if strict or each.level != "strict"]
    unused = tuple(exemptions.find_unused(segments, rules)) if strict and finished else ()
    traces = [exemptions.remove_exempted(trace, policy) for trace, policy in segments]
    wholes: dict[tuple[bool, ...], Trace] = {}
    found: list[Violation] = []
    for each in rules:
        binds = tuple(each.name not in policy.allow for _, policy in segments)
        if any(binds):
            if binds not in wholes:
                wholes[binds] = replace(join_traces(list(compress(traces, binds))), unused_exemptions=unused)
            found += each.violations(wholes[binds])
    return [exemptions.add_near_misses(violation, segments) for violation in found]


def _models(traces: Sequence[Trace]) -> tuple[WatchedModel, ...]:
    """Each model once, with the forwards of all segments, as it was seen last."""
    found: dict[str, WatchedModel] = {}
    for model in chain.from_iterable(trace.models for trace in traces):
        before = found[model.name].forwards if model.name in found else 0
        found[model.name] = replace(model, forwards=before + model.forwards)
    return tuple(found.values())


def _left(found: Iterable[Leak]) -> tuple[Leak, ...]:
    """What several segments left otherwise, from the first to the last."""
    left: dict[tuple[str | None, str], Leak] = {}
    for leak in found:
        key = leak.model, leak.name
        left[key] = replace(leak, before=left[key].before) if key in left else leak
    return tuple(leak for leak in left.values() if leak.before != leak.after)


def join_traces(traces: Sequence[Trace]) -> Trace:
    """One trace of several; a tensor that changed in two of them is told once, as it changed first."""
    changes: dict[tuple[str, str], TensorChange] = {}
    for change in chain.from_iterable(trace.changes for trace in traces):
        changes.setdefault((change.model, change.path), change)
    return Trace(
        models=_models(traces),
        calls=tuple(call for trace in traces for call in trace.calls),
        changes=tuple(changes.values()),
        steps=tuple(dict.fromkeys(step for trace in traces for step in trace.steps)),
        writes=tuple(dict.fromkeys(use for trace in traces for use in trace.writes)),
        gradients=tuple(dict.fromkeys(use for trace in traces for use in trace.gradients)),
        names=frozenset().union(*(trace.names for trace in traces)),
        loads=tuple(load for trace in traces for load in trace.loads),
        leaks=_left(leak for trace in traces for leak in trace.leaks),
        drifts=tuple(drift for trace in traces for drift in trace.drifts),
        global_drifts=tuple(drift for trace in traces for drift in trace.global_drifts),
        locks=tuple(change for trace in traces for change in trace.locks),
        needs_forward=any(trace.needs_forward for trace in traces),
        forwards=sum(trace.forwards for trace in traces),
        events=tuple(event for trace in traces for event in trace.events),
    )
