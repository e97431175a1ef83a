"""Rules about state that inference must not change: parameters, buffers, attributes and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from pytest_evalmode.rules.call_groups import calls_by_model, violation_of_calls
from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.rules.training_calls import (
    first_backward,
    first_optimizer_step,
    format_operation,
    operation_details,
    pause_if,
    pause_remedy,
)
from pytest_evalmode.rules.wording import first_and_more, plural, title
from pytest_evalmode.trace import Drift, Leak, Load, ModelOperation, Site, TensorChange, Trace


@rule(
    "state-mutated",
    fires_when="a parameter or persistent buffer (what state_dict() saves) changed: value, shape, dtype, device, "
    "added, removed. -0.0 equals 0.0",
    remedy="call model.eval(); list tensors that may change in mutable=[...]",
)
def state_mutated(trace: Trace) -> Iterator[Violation]:
    training = {
        name: call.at
        for call in reversed(trace.calls)
        if call.training
        for name in (call.ran.model, *(observation.module.model for observation in call.training))
    }
    graphs = {call.ran.model for call in trace.calls if any(o.is_graph for o in (*call.draws, *call.batch_stats))}
    for changes in _by_model(change for change in trace.changes if change.persistent and change.frozen):
        yield _mutation(changes, changes[0].last_forward, remedy=_FROZEN_REMEDY, never_intended=True)
    for of_model in _by_model(change for change in trace.changes if change.persistent and not change.frozen):
        model = of_model[0].model
        step, backward = first_optimizer_step(trace, model), first_backward(trace, model)
        writes = [] if step or backward else [write for write in trace.writes if write.at and model in write.models]
        weights = [change for change in of_model if not change.buffer]
        causes = [write for write in writes if any(_explains(write, change) for change in weights)]
        groups: dict[ModelOperation | None, list[TensorChange]] = {}
        for change in of_model:
            groups.setdefault(next((write for write in causes if _explains(write, change)), None), []).append(change)
        for write, group in groups.items():
            has_weights = any(not change.buffer for change in group)
            at = training.get(model) or group[0].last_forward
            # The most specific explanation comes first.  Training mode and graphs change buffers, but never weights.
            if step:
                details, because = operation_details(trained=step), ("train-mode", "grad-mode")
                yield _mutation(group, at, details, remedy=pause_remedy(step), because=because, never_intended=True)
            elif has_weights and backward:
                pause = pause_if(f"the test trains on purpose ({format_operation(backward)})")
                yield _mutation(group, at, remedy=f"{pause}; otherwise {_UNKNOWN_WRITE_REMEDY}")
            elif write:
                details, remedy = operation_details(written=write), _WRITE_REMEDY.format(write.name)
                yield _mutation(group, write.at, details, since=write.at, remedy=remedy)
            elif has_weights or not (model in training or model in graphs):
                yield _dated_mutation(group, at)
            elif model in graphs:
                yield _mutation(group, at, because=("train-mode", "batch-stats", "random-forward"))
            else:
                yield _explain_by_training(_mutation(group, at), trace)


@rule(
    "buffer-mutated",
    level="strict",
    fires_when="a non-persistent buffer changed",
    remedy="compute it in __init__; if it is a cache, list it in mutable=[...]",
)
def buffer_mutated(trace: Trace) -> Iterator[Violation]:
    for changes in _by_model(change for change in trace.changes if not change.persistent):
        yield _explain_by_training(_mutation(changes, changes[0].last_forward), trace)


@rule(
    "input-mutated",
    level="strict",
    fires_when="a forward changed in place an input tensor that something else still references (a temporary, "
    "model(x.clone()), may be changed)",
    remedy="clone the input first, or make the first operation on it out of place (inplace=False)",
)
def input_mutated(trace: Trace) -> Iterator[Violation]:
    for calls in calls_by_model(trace, lambda call: call.inputs):
        names = list(dict.fromkeys(name for call in calls for name in call.inputs))
        writer = calls[0].by or calls[0].ran
        yield violation_of_calls(
            calls,
            subjects=(str(writer),),
            message=f"{title(writer)} changed its input in place",
            finding=f"{title(writer)} wrote into {first_and_more(names)}: code that reads it later sees the new values",
            details={"arguments": names},
        )


@rule(
    "attribute-mutated",
    level="strict",
    fires_when="a plain attribute of a module changed during a forward: a number, string, bool, None or tensor, or one "
    "of these inside a tuple, list or dict. An attribute that appears, or is set for the first time (None before), has "
    "not changed; neither has one that every forward writes before reading it",
    remedy="store intermediate results in local variables, and update state only under `if self.training:`; "
    "a forward must not depend on the one before",
)
def attribute_mutated(trace: Trace) -> Iterator[Violation]:
    for calls in calls_by_model(trace, lambda call: call.attributes):
        changed: dict[str, str] = {}
        for change in chain.from_iterable(call.attributes for call in calls):
            changed.setdefault(change.name, f"{change.before} -> {change.after}")
        first = next(iter(changed))
        text = f"{first}: {changed[first]}" + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
        yield violation_of_calls(
            calls,
            subjects=tuple(changed),
            message=text,
            finding=text,
            details={"attributes": changed},
        )


@rule(
    "partial-load",
    level="strict",
    fires_when="a load_state_dict(strict=False) in the user's own code left unexpected keys, or missing keys that no "
    "other load of the window filled; a library's load (of an adapter, for example) only counts if it matched nothing",
    remedy="load with strict=True; if the checkpoint is partial on purpose, pass allow=['partial-load']",
)
def partial_load(trace: Trace) -> Iterator[Violation]:
    for load in trace.loads:
        kinds = (("missing", load.missing), ("unexpected", load.unexpected))
        keys = [f"{plural(len(names), f'{kind} key')} ({first_and_more(names)})" for kind, names in kinds if names]
        yield Violation(
            model=load.model.model,
            subjects=tuple(f"{load.model.name}.{key}" for key in (*load.missing, *load.unexpected)),
            message=f"{title(load.model)} was loaded with {' and '.join(keys)}",
            finding=f"load_state_dict(strict=False) ignored {' and '.join(keys)}{_common_prefix(load)}",
            at=load.at,
            count=len(load.missing) + len(load.unexpected),
            details={"missing": list(load.missing), "unexpected": list(load.unexpected)},
        )


@rule(
    "state-drifted",
    level="strict",
    fires_when="a shared model's state, or torch's global state, changed between two guarded tests",
    remedy="let tests that train use a copy of the model (copy.deepcopy) or a fixture of their own",
)
def state_drifted(trace: Trace) -> Iterator[Violation]:
    for drift in trace.drifts:
        is_global = drift.model is None
        names = tuple(f"torch {change.name}" if is_global else change.name for change in drift.changes)
        texts = [describe_change(change) for change in drift.changes]
        first = drift.changes[0]
        changed = f"{first_and_more(names)} changed"
        if isinstance(first, Leak):
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            changed = f"{names[0]} changed from {first.before} to {first.after}{more}"
        yield Violation(
            model=drift.model,
            subjects=names,
            message=f"{first_and_more(names)} changed since the last guarded test",
            finding=f"{changed} after {drift.last_seen_by} ended; {_run_since(drift)}",
            remedy="set it in a context manager, or in a fixture that restores it" if is_global else "",
            count=len(names),
            details={
                "last_seen_by": drift.last_seen_by,
                "between": list(drift.between),
                **({"changed_by": list(drift.changed_by)} if is_global else {}),
                "changes": dict(zip(names, texts, strict=True)),
            },
        )


_FROZEN_REMEDY = (
    "`evalmode.paused(frozen=...)` says that it does not train: after train(), call eval() on that module, and pass "
    "the optimizer only the parameters that train"
)
_UNKNOWN_WRITE_REMEDY = (
    "find the code that wrote to it: the model's own forward, or code outside it (an optimizer, `.data`, a load); "
    "or list it in mutable=[...]"
)
_WRITE_REMEDY = (
    "call {} before the test's first forward, for example in a fixture; or list the tensors that it changes in "
    "mutable=[...]"
)


def _explains(write: ModelOperation, change: TensorChange) -> bool:
    """Return whether a call can explain a change: a load explains values, a conversion dtypes and devices."""
    if write.name == "load_state_dict()":
        return change.what == "values"
    return change.what in ("dtype", "device") and write.name != "requires_grad_()"


def _dated_mutation(changes: list[TensorChange], at: Site | None) -> Violation:
    """Return a violation for a write by unknown code, with when the tensors changed, and a remedy that fits."""
    dated = {change.written for change in changes}
    first, cause, when, remedy = changes[0].first_forward, None, "", _UNKNOWN_WRITE_REMEDY
    if "before" in dated:
        when = "before the model's first forward"
        remedy = (
            "find the code that wrote to it between the start of the test and that forward, and let it use a copy of "
            "the model (copy.deepcopy); or list it in mutable=[...]"
        )
    elif "inside" in dated:
        when = "in the model's first forward"
        cause = next((change.written_at for change in changes if change.written_at), None)
        line = f" ({cause})" if cause else ""
        remedy = f"let the forward write to it only under `if self.training:`{line}; or list it in mutable=[...]"
    else:
        when = "after the model's first forward" if "after" in dated and first else ""
        if changes[0].seen_late and not any(change.buffer or change.what != "values" for change in changes):
            remedy += (
                "; if other weights were swapped in for the forward (an average, a reparametrization), call "
                "evalmode.watch(model) before the swap"
            )
    if not when:
        return _mutation(changes, at, remedy=remedy)
    return _mutation(changes, first, {"when": when}, cause=cause, remedy=remedy)


def _run_since(drift: Drift) -> str:
    """Return the tests that changed the state, if known, or those that ran since."""
    if drift.changed_by:
        return f"it changed while {first_and_more(drift.changed_by)} ran"
    more = f" and {len(drift.between) - 3} more" if len(drift.between) > 3 else ""
    return f"tests run since: {', '.join(drift.between[:3])}{more}" if drift.between else "no test ran since"


def _explain_by_training(violation: Violation, trace: Trace) -> Violation:
    """Return the violation as a consequence of train-mode if each tensor is in a mode-dependent module in that mode."""
    observations = (observation for call in trace.calls for observation in call.training)
    modules = {observation.module.name for observation in observations if observation.module.mode_dependent}
    explained = all(subject.rpartition(".")[0] in modules for subject in violation.subjects)
    return replace(violation, because=("train-mode",)) if explained else violation


def _common_prefix(load: Load) -> str:
    """Return the prefix that all missing or all unexpected keys share, if it explains the others, with advice."""
    for keys, other, advice in (
        (load.unexpected, load.missing, "strip it from the checkpoint's keys"),
        (load.missing, load.unexpected, "add it to the checkpoint's keys"),
    ):
        prefixes = {key.partition(".")[0] for key in keys}
        if len(prefixes) == 1 and not {key.partition(".")[2] for key in keys}.isdisjoint(other):
            return f": every one of these keys has the prefix `{prefixes.pop()}.`; {advice}"
    return ""


def _by_model(changes: Iterable[TensorChange]) -> Iterable[list[TensorChange]]:
    groups: dict[str, list[TensorChange]] = {}
    for change in changes:
        groups.setdefault(change.model, []).append(change)
    return groups.values()


def _mutation(
    changes: Sequence[TensorChange], at: Site | None, details: Mapping[str, str] | None = None, **fields: Any
) -> Violation:
    """Return a violation for tensors of one model that changed; `fields` are its other fields."""
    extents = {change.name: describe_change(change) for change in changes}
    changed = f"{first_and_more(list(extents))} changed"
    return Violation(
        model=changes[0].model,
        subjects=tuple(extents),
        message=changed,
        finding=f"{changed}    {describe_change(changes[0])}".rstrip(),
        at=at,
        count=len(changes),
        details={"changes": extents, **(details or {})},
        mutable=tuple(change.path for change in changes),
        **fields,
    )


def describe_change(change: TensorChange | Leak) -> str:
    """Return how much a tensor changed, if known: `max |Δ| 0.031, 64 of 64 elements`; or the values of a setting."""
    if isinstance(change, Leak):
        return f"{change.before} -> {change.after}"
    if change.elements is None:
        return "" if change.what == "values" else f"{change.what} {change.before_and_after}".rstrip()
    extent = f"{change.elements} of {plural(change.numel or 0, 'element')}"
    return extent if change.max_abs is None else f"max |Δ| {change.max_abs:.2g}, {extent}"
