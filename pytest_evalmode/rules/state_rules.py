"""Rules about what should be after inference what it was before: parameters, buffers, attributes, inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import chain
from typing import Any

from pytest_evalmode.rules.call_groups import calls_by_model, violation_of_calls
from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.rules.training_calls import first_backward, first_optimizer_step, operation_details, pause_remedy
from pytest_evalmode.rules.training_calls import format_operation as told_use
from pytest_evalmode.rules.wording import first_and_more, plural, title
from pytest_evalmode.trace import Drift, GlobalDrift, Load, ModelOperation, TensorChange, Trace


@rule(
    "state-mutated",
    fires_when="a parameter or persistent buffer changed",
    remedy="call model.eval(); declare what may change with mutable=[...]",
)
def state_mutated(trace: Trace) -> Iterator[Violation]:
    training = {
        name: call.at
        for call in reversed(trace.calls)
        if call.training
        for name in (call.ran.model, *(finding.module.model for finding in call.training))
    }
    graphs = {call.ran.model for call in trace.calls if any(f.is_graph for f in (*call.draws, *call.batch_stats))}
    weights = {change.model for change in trace.changes if change.persistent and not change.buffer}
    for violation in _mutated(change for change in trace.changes if change.persistent):
        model = violation.model
        step, use = first_optimizer_step(trace, model), first_backward(trace, model)
        writer = _writer(trace, [change for change in trace.changes if change.persistent and change.model == model])
        if model in training:
            violation = replace(violation, at=training[model] or violation.at)
        if step:
            facts = {**violation.details, **operation_details(trained=step)}
            because = ("train-mode", "grad-mode")
            yield replace(violation, remedy=pause_remedy(step), details=facts, because=because, never_intended=True)
        elif model in weights and use:
            yield replace(violation, remedy=_by_hand(use))
        elif model in weights and writer and writer.at:
            facts = {**violation.details, **operation_details(written=writer)}
            yield replace(violation, at=writer.at, since=writer.at, remedy=_BEFORE.format(writer.name), details=facts)
        elif model in weights or not (model in training or model in graphs):
            yield replace(violation, remedy=_WRITTEN)
        elif model in graphs:
            yield replace(violation, because=("train-mode", "batch-stats", "random-forward"))
        else:
            yield _of_training(violation, trace)


@rule(
    "buffer-mutated",
    level="strict",
    fires_when="a non-persistent buffer changed",
    remedy="fill it in __init__; declare a cache with mutable=[...]",
)
def buffer_mutated(trace: Trace) -> Iterator[Violation]:
    for violation in _mutated(change for change in trace.changes if not change.persistent):
        yield _of_training(violation, trace)


@rule(
    "input-mutated",
    level="strict",
    fires_when="a forward changed its input tensor in place",
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
            finding=f"{title(writer)} wrote into {first_and_more(names)}: the next to read it sees other data",
            details={"arguments": names},
        )


@rule(
    "attribute-mutated",
    level="strict",
    fires_when="a plain attribute of a module changed during a forward",
    remedy="keep what a forward computes in local variables, and what it learns under `if self.training:`; "
    "the next forward must not depend on this one",
)
def attribute_mutated(trace: Trace) -> Iterator[Violation]:
    for calls in calls_by_model(trace, lambda call: call.attributes):
        changed: dict[str, str] = {}
        for change in chain.from_iterable(call.attributes for call in calls):
            changed.setdefault(change.name, f"{change.before} -> {change.after}")
        first = next(iter(changed))
        said = f"{first}: {changed[first]}{_and_more(changed)}"
        yield violation_of_calls(
            calls,
            subjects=tuple(changed),
            message=said,
            finding=said,
            details={"attributes": changed},
        )


@rule(
    "partial-load",
    level="strict",
    fires_when="load_state_dict(strict=False) left missing or unexpected keys",
    remedy="load with strict=True; where the rest is meant to stay, say so: allow=['partial-load']",
)
def partial_load(trace: Trace) -> Iterator[Violation]:
    for load in trace.loads:
        if load.matched and not load.by_user:
            continue  # an adapter's: the rest of the model is not its business
        kinds = (("missing", load.missing), ("unexpected", load.unexpected))
        said = [f"{plural(len(keys), f'{kind} key')} ({first_and_more(keys)})" for kind, keys in kinds if keys]
        yield Violation(
            model=load.model.model,
            subjects=tuple(f"{load.model.name}.{key}" for key in (*load.missing, *load.unexpected)),
            message=f"{title(load.model)} was loaded with {' and '.join(said)}",
            finding=f"load_state_dict(strict=False) ignored {' and '.join(said)}{_common_cause(load)}",
            at=load.at,
            count=len(load.missing) + len(load.unexpected),
            details={"missing": list(load.missing), "unexpected": list(load.unexpected)},
        )


@rule(
    "state-drifted",
    level="strict",
    fires_when="a shared model's state, or torch's global state, changed between two guarded tests",
    remedy="let what trains work on a copy (copy.deepcopy) or on a fixture of its own",
)
def state_drifted(trace: Trace) -> Iterator[Violation]:
    for drift in trace.drifts:
        names = tuple(change.name for change in drift.changes)
        yield _drifted(
            drift,
            names,
            model=drift.model,
            finding=f"{first_and_more(names)} {'was' if len(names) == 1 else 'were'} otherwise "
            f"when {drift.last_seen_by} ended; {_ran(drift.between)}",
            details={"changes": {change.name: describe_change(change) for change in drift.changes}},
        )
    for found in trace.global_drifts:
        names = tuple(f"torch {change.name}" for change in found.changes)
        first = f"{names[0]} was {found.changes[0].before} and is {found.changes[0].after}"
        changes = {name: f"{c.before} -> {c.after}" for name, c in zip(names, found.changes, strict=True)}
        yield _drifted(
            found,
            names,
            model=None,
            finding=f"{first} since {found.last_seen_by} ended{_and_more(names)}; {_ran(found.between, found.changed_by)}",
            remedy="set it in a context manager, or put it back in a fixture's teardown",
            details={"changed_by": list(found.changed_by), "changes": changes},
        )


_WRITTEN = (
    "find what wrote to it: a forward of its own, or code beside them (an optimizer, .data, a method, a load); "
    "or declare it with mutable=[...]"
)
_BEFORE = "call {} before the test's first forward, in a fixture say; or declare what it changes with mutable=[...]"


def _writer(trace: Trace, changes: Sequence[TensorChange]) -> ModelOperation | None:
    """The first call that sets whole models as these changes are: a load sets values, a conversion what they are."""
    loaded = all(change.what.startswith("values") for change in changes)
    converted = all(change.what.startswith(("dtype", "device")) for change in changes)
    for use in trace.writes:
        wrote = loaded if use.name == "load_state_dict()" else converted and use.name != "requires_grad_()"
        if wrote and any(change.model in use.models for change in changes):
            return use
    return None


def _drifted(drift: Drift | GlobalDrift, names: tuple[str, ...], *, details: dict[str, Any], **facts: Any) -> Violation:
    """Something that changed between two guarded tests: what, since which test, and what ran in between."""
    return Violation(
        subjects=names,
        message=f"{first_and_more(names)} changed since the last guarded test",
        count=len(names),
        details={"last_seen_by": drift.last_seen_by, "between": list(drift.between), **details},
        **facts,
    )


def _and_more(all_of_them: Sized) -> str:
    """How many there are besides the first, which has been told."""
    return f" (and {len(all_of_them) - 1} more)" if len(all_of_them) > 1 else ""


def _ran(between: Sequence[str], by: Sequence[str] = ()) -> str:
    """Who may have done it, or who did."""
    if by:
        return f"it changed as {first_and_more(by)} ran"
    more = f" and {len(between) - 3} more" if len(between) > 3 else ""
    return f"in between ran {', '.join(between[:3])}{more}" if between else "nothing ran in between"


def _of_training(violation: Violation, trace: Trace) -> Violation:
    """The same as a consequence of training mode, where that moved all that changed: it runs other code there."""
    findings = (finding for call in trace.calls for finding in call.training)
    modules = {finding.module.name for finding in findings if finding.module.mode_dependent}
    explained = all(subject.rpartition(".")[0] in modules for subject in violation.subjects)
    return replace(violation, because=("train-mode",)) if explained else violation


def _by_hand(use: ModelOperation) -> str:
    """The remedy where weights changed and gradients were taken, though no optimizer made a step."""
    return f"where it is meant to train, put that in `with evalmode.paused():` ({told_use(use)}); else {_WRITTEN}"


def _common_cause(load: Load) -> str:
    """What all the keys that were left over have in common, where that explains them."""
    for keys, other, advice in (
        (load.unexpected, load.missing, "strip it from the checkpoint's keys"),
        (load.missing, load.unexpected, "add it to the checkpoint's keys"),
    ):
        heads = {key.partition(".")[0] for key in keys}
        if keys and len(heads) == 1:
            head = heads.pop()
            stripped = {key.partition(".")[2] for key in keys}
            if stripped & set(other) or head in ("module", "_orig_mod"):
                return f": every one of these keys has the prefix `{head}.`; {advice}"
    return ""


def _mutated(found: Iterable[TensorChange]) -> Iterator[Violation]:
    all_changes = list(found)
    for model in dict.fromkeys(change.model for change in all_changes):
        changes = [change for change in all_changes if change.model == model]
        names = tuple(change.name for change in changes)
        extent = f"    {describe_change(changes[0])}" if describe_change(changes[0]) else ""
        yield Violation(
            model=model,
            subjects=names,
            message=f"{first_and_more(names)} changed",
            finding=f"{first_and_more(names)} changed{extent}",
            at=changes[0].last_forward,
            count=len(changes),
            details={"changes": {change.name: describe_change(change) for change in changes}},
            mutable=tuple(change.path for change in changes),
        )


def describe_change(change: TensorChange) -> str:
    """How far a tensor moved where that is known: `max |Δ| 0.031, 64 of 64 elements`."""
    if change.elements is None:
        return "" if change.what == "values" else change.what
    extent = f"{change.elements} of {plural(change.numel or 0, 'element')}"
    return extent if change.max_abs is None else f"max |Δ| {change.max_abs:.2g}, {extent}"
