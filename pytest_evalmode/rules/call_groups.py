"""Forward calls, grouped and counted as violations tell them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_evalmode.rules.rule import Violation
from pytest_evalmode.rules.wording import first_and_more, title, titles
from pytest_evalmode.trace import ForwardCall, ModuleInfo, Observation, Site, Trace


def calls_by_model(trace: Trace, fact: Callable[[ForwardCall], object]) -> Iterator[list[ForwardCall]]:
    """The calls that have a fact, in the order in which they ran, one group a model."""
    groups: dict[str, list[ForwardCall]] = {}
    for call in trace.calls:
        if fact(call):
            groups.setdefault(call.ran.model, []).append(call)
    return iter(groups.values())


def observations_by_model(
    trace: Trace, findings: Callable[[ForwardCall], Iterable[Observation]]
) -> Iterator[tuple[list[ForwardCall], list[Observation]]]:
    """The calls in which something was found, one group a model, with each module that it was found of."""
    for calls in calls_by_model(trace, findings):
        yield calls, unique_by_module(finding for call in calls for finding in findings(call))


def unique_by_module(findings: Iterable[Observation]) -> list[Observation]:
    """Each module once, with the first finding that has a cause where there is one."""
    found: dict[str, Observation] = {}  # by name: the type of a lazy module is another once it has run
    for finding in findings:
        known = found.get(finding.module.name)
        if known is None or (known.cause is None and finding.cause is not None):
            found[finding.module.name] = finding
    return list(found.values())


def count_runs(calls: Iterable[ForwardCall]) -> int:
    """How often models ran: where a method of theirs ran them part by part, as often as the part that ran most."""
    ran: dict[ModuleInfo, Counter[ModuleInfo]] = {}
    for call in calls:
        ran.setdefault(call.ran, Counter())[call.by or call.ran] += call.count
    return sum(max(parts.values()) for parts in ran.values())


def module_names(found: Iterable[Observation]) -> str:
    """The modules of which something was found, in a sentence."""
    return first_and_more(titles(finding.module for finding in found))


def model_names(calls: Iterable[ForwardCall]) -> str:
    """What ran, in a headline."""
    return first_and_more([title(part) for part in dict.fromkeys(call.ran for call in calls)])


def violation_of_calls(
    calls: list[ForwardCall], *, details: Mapping[str, Any] | None = None, **facts: Any
) -> Violation:
    """A violation of one model by these calls: where the first was made, how many there were, what else to say."""
    return Violation(
        model=calls[0].ran.model,
        at=calls[0].at,
        through=calls[0].through,
        count=count_runs(calls),
        details={**(details or {}), **call_sites(calls)},
        **facts,
    )


def violation_of_modules(calls: list[ForwardCall], found: Sequence[Observation], **facts: Any) -> Violation:
    """The same of some modules, where the line in the model that led to the first is known."""
    return violation_of_calls(calls, subjects=tuple(str(f.module) for f in found), cause=found[0].cause, **facts)


def call_sites(calls: list[ForwardCall]) -> dict[str, Any]:
    """The line that called the model, and the further lines that did, for the details; the first is known as `at`."""
    through = {"through": str(calls[0].through)} if calls[0].through else {}
    others: list[Site] = [call.at for call in calls if call.at and call.at != calls[0].at]
    return {**through, "also_at": [str(site) for site in dict.fromkeys(others)]} if others else through
