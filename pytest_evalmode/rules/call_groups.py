"""Forward calls grouped by model, and the violations that report them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_evalmode.rules.rule import Violation
from pytest_evalmode.rules.wording import first_and_more, title
from pytest_evalmode.trace import ForwardCall, ModuleInfo, Observation, Trace


def calls_by_model(trace: Trace, is_relevant: Callable[[ForwardCall], object]) -> Iterator[list[ForwardCall]]:
    """Return the relevant calls in the order in which they ran, grouped by model."""
    groups: dict[str, list[ForwardCall]] = {}
    for call in trace.calls:
        if is_relevant(call):
            groups.setdefault(call.ran.model, []).append(call)
    return iter(groups.values())


def observations_by_model(
    trace: Trace, observations_of: Callable[[ForwardCall], Iterable[Observation]]
) -> Iterator[tuple[list[ForwardCall], list[Observation]]]:
    """Yield the calls of each model that have observations, with one observation per module."""
    for calls in calls_by_model(trace, observations_of):
        yield calls, unique_by_module(observation for call in calls for observation in observations_of(call))


def unique_by_module(observations: Iterable[Observation]) -> list[Observation]:
    """Return one observation per module: the first that has a cause, or else the first."""
    unique: dict[str, Observation] = {}  # by name, because a lazy module changes its type when it first runs
    for observation in observations:
        known = unique.get(observation.module.name)
        if known is None or (known.cause is None and observation.cause is not None):
            unique[observation.module.name] = observation
    return list(unique.values())


def most_telling_first(observations: list[Observation]) -> list[Observation]:
    """Return observations sorted: modules whose result surely changes in training mode, inner ones, containers."""
    paths = (observation.module.path.split(".") for observation in observations if observation.module.path)
    containers = {"", *(".".join(steps[:n]) for steps in paths for n in range(1, len(steps)))}
    return sorted(observations, key=lambda each: (not each.module.changes_result, each.module.path in containers))


def count_runs(calls: Iterable[ForwardCall]) -> int:
    """Return how often models ran.

    If a method other than `__call__` ran a model's submodules one by one, the most frequent submodule counts.
    """
    runs: dict[ModuleInfo, Counter[ModuleInfo]] = {}
    for call in calls:
        runs.setdefault(call.ran, Counter())[call.by or call.ran] += call.count
    return sum(max(submodules.values()) for submodules in runs.values())


def module_names(observations: Iterable[Observation]) -> str:
    """Return the observed modules for a sentence: `model.bn1 (BatchNorm2d) and 52 more`."""
    return first_and_more([title(observation.module) for observation in observations])


def model_names(calls: Iterable[ForwardCall]) -> str:
    """Return the models that ran for a headline: `model (ResNet)`."""
    return first_and_more([title(ran) for ran in dict.fromkeys(call.ran for call in calls)])


def violation_of_calls(
    calls: list[ForwardCall], *, details: Mapping[str, Any] | None = None, **fields: Any
) -> Violation:
    """Return a violation of one model, located at the first of these calls; `fields` are its other fields."""
    first = calls[0]
    others = dict.fromkeys(str(call.at) for call in calls if call.at and call.at != first.at)
    lines = {"through": str(first.through) if first.through else None, "also_at": list(others)}
    return Violation(
        model=first.ran.model,
        at=first.at,
        through=first.through,
        count=count_runs(calls),
        details={**(details or {}), **{key: value for key, value in lines.items() if value}},
        **fields,
    )


def violation_of_modules(calls: list[ForwardCall], observations: Sequence[Observation], **fields: Any) -> Violation:
    """Return a violation whose subjects are the observed modules and whose cause is that of the first one."""
    subjects = tuple(str(observation.module) for observation in observations)
    return violation_of_calls(calls, subjects=subjects, cause=observations[0].cause, **fields)
