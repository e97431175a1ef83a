"""Exemptions: what `allow`, `train` and `mutable` permit, and which of them matched nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules.rule import Rule, Violation, rule
from pytest_evalmode.trace import ForwardCall, Observation, Trace

PolicySegments = Sequence[tuple[Trace, Policy]]
"""The traces of a window in order, each with its policy."""
Exemption = tuple[str, str]
"""An argument of the marker and one of its values: `("train", "drop")`."""


@rule(
    "unused-exemption",
    level="strict",
    fires_when="an allow, train or mutable matched nothing",
    remedy="remove it: an unused exemption would hide the next mistake",
)
def unused_exemption(trace: Trace) -> Iterator[Violation]:
    if trace.unused_exemptions:
        noun = "exemption" if len(trace.unused_exemptions) == 1 else "exemptions"
        text = f"unused {noun}: {', '.join(trace.unused_exemptions)}"
        yield Violation(
            model=None,
            subjects=trace.unused_exemptions,
            message=text,
            finding=text,
            count=len(trace.unused_exemptions),
        )


def remove_exempted(trace: Trace, policy: Policy) -> Trace:
    """Return the trace without the modules that may be in training mode, their draws, and tensors that may change."""

    def is_exempted(observation: Observation) -> bool:
        return matches(observation.module.model, observation.module.path, policy.train)

    def remove_modules(call: ForwardCall) -> ForwardCall:
        training = tuple(each for each in call.training if not is_exempted(each))
        draws = tuple(each for each in call.draws if not (each.training and is_exempted(each)))
        return replace(call, training=training, draws=draws)

    changes = tuple(c for c in trace.changes if not matches(c.model, c.path, policy.mutable))
    return replace(trace, calls=tuple(map(remove_modules, trace.calls)), changes=changes)


def find_unused(segments: PolicySegments, rules: Sequence[Rule]) -> list[str]:
    """Return the exemptions of markers and of `evalmode.allow()` that matched nothing, as declared."""
    declared = dict.fromkeys(exemption for _, policy in segments for exemption in policy.exemptions)
    return [format_exemption(exemption) for exemption in declared if not is_needed(exemption, segments, rules)]


def is_needed(exemption: Exemption, segments: PolicySegments, rules: Iterable[Rule]) -> bool:
    """Whether there would be a violation without this exemption, in the segments that declare it (or else in any)."""
    kind, value = exemption
    segments = [(trace, policy) for trace, policy in segments if exemption in policy.exemptions] or segments
    if kind == "train":
        calls = [call for trace, _ in segments for call in trace.calls]
        observations = [each for call in calls for each in call.training]
        observations += [draw for call in calls for draw in call.draws if draw.training]
        return any(matches(each.module.model, each.module.path, [value]) for each in observations)
    if kind == "mutable":
        return any(matches(change.model, change.path, [value]) for trace, _ in segments for change in trace.changes)
    return value == unused_exemption.name or any(
        rule.violations(remove_exempted(trace, policy))
        for rule in rules
        if rule.name == value
        for trace, policy in segments
    )


def add_near_misses(violation: Violation, segments: PolicySegments) -> Violation:
    """Return the violation with a note for each glob that matches no name but resembles one at fault."""
    notes = [
        f'{format_exemption((kind, glob))} matches no {noun}; did you mean "{near}"?'
        for kind, noun, paths in (("train", "module", violation.train), ("mutable", "tensor", violation.mutable))
        if paths
        for glob in dict.fromkeys(glob for _, policy in segments for glob in getattr(policy, kind))
        if not any(matches(model, path, [glob]) for trace, _ in segments for model, path in trace.names)
        and (near := _nearest(glob, paths))
    ]
    return replace(violation, notes=(*violation.notes, *notes)) if notes else violation


def _nearest(glob: str, paths: Iterable[str]) -> str | None:
    """Return the path that resembles a glob most, as a whole or by its last component, or None."""
    paths = list(paths)  # of several with the same last component, the first
    paths_by_name = {path.rpartition(".")[2]: path for path in reversed(paths)} | {path: path for path in paths}
    nearest = get_close_matches(glob.strip("*."), paths_by_name, n=1, cutoff=0.5)
    return paths_by_name[nearest[0]] if nearest else None


def format_exemption(exemption: Exemption) -> str:
    """Return an exemption as an argument of the marker: `train="drop"`."""
    return f'{exemption[0]}="{exemption[1]}"'


def is_inside(model: str, path: str, globs: Iterable[str]) -> bool:
    """Whether a glob matches this module or tensor, or a module around it; the model's name matches all of it."""
    steps = path.split(".") if path else []
    return any(matches(model, ".".join(steps[:count]), globs) for count in range(len(steps) + 1))


def matches(model: str, path: str, globs: Iterable[str]) -> bool:
    """Whether a glob matches this module or tensor, by its path (`bn1.*`) or by its full name (`model.bn1.*`).

    Brackets may be a set of characters, as in any glob, or part of the name: `blocks[0].*`.
    """
    names = path, f"{model}.{path}" if path else model
    return any(
        fnmatchcase(name, pattern) for glob in globs for pattern in (glob, glob.replace("[", "[[]")) for name in names
    )
