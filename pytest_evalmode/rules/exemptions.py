"""What `allow`, `train` and `mutable` excuse, and which of them nothing needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules.rule import Rule, Violation, rule
from pytest_evalmode.trace import ForwardCall, Trace

PolicySegments = Sequence[tuple[Trace, Policy]]
Exemption = tuple[str, str]


@rule(
    "unused-exemption",
    level="strict",
    fires_when="an allow, train or mutable is declared that nothing needed",
    remedy="take it out; what is no longer needed would hide the next mistake",
)
def unused_exemption(trace: Trace) -> Iterator[Violation]:
    if trace.unused_exemptions:
        yield Violation(
            model=None,
            subjects=trace.unused_exemptions,
            message=f"nothing needed {', '.join(trace.unused_exemptions)}",
            finding=f"nothing needed {', '.join(trace.unused_exemptions)}",
            count=len(trace.unused_exemptions),
        )


def remove_exempted(trace: Trace, policy: Policy) -> Trace:
    """The trace without the modules and tensors that the policy lets train or change."""
    return replace(
        trace,
        calls=tuple(_excuse_call(call, policy) for call in trace.calls),
        changes=tuple(c for c in trace.changes if not matches(c.model, c.path, policy.mutable)),
    )


def find_unused(segments: PolicySegments, rules: Sequence[Rule]) -> list[str]:
    """The exemptions of marks and of `evalmode.allow()` that excused nothing, as they were declared."""
    declared = dict.fromkeys(exemption for _, policy in segments for exemption in policy.exemptions)
    return [format_exemption(exemption) for exemption in declared if not is_needed(exemption, segments, rules)]


def is_needed(exemption: Exemption, segments: PolicySegments, rules: Iterable[Rule]) -> bool:
    """Whether something would have been told without this exemption: where it was declared, else anywhere."""
    kind, value = exemption
    segments = [(trace, policy) for trace, policy in segments if exemption in policy.exemptions] or segments
    if kind == "train":
        parts = [finding.module for trace, _ in segments for call in trace.calls for finding in call.training]
        return any(matches(part.model, part.path, [value]) for part in parts)
    if kind == "mutable":
        return any(matches(change.model, change.path, [value]) for trace, _ in segments for change in trace.changes)
    return value == unused_exemption.name or any(
        rule.violations(remove_exempted(trace, policy))
        for rule in rules
        if rule.name == value
        for trace, policy in segments
    )


def add_near_misses(violation: Violation, segments: PolicySegments) -> Violation:
    """The same, with the globs in force that name nothing there is, though what is at fault has a name like them."""
    notes = [
        f"{format_exemption((kind, glob))} matches no {noun}; nearest: {near}"
        for kind, noun, paths in (("train", "module", violation.train), ("mutable", "tensor", violation.mutable))
        if paths
        for glob in dict.fromkeys(glob for _, policy in segments for glob in getattr(policy, kind))
        if not any(matches(model, path, [glob]) for trace, _ in segments for model, path in trace.names)
        and (near := _nearest(glob, paths))
    ]
    return replace(violation, notes=(*violation.notes, *notes)) if notes else violation


def _nearest(glob: str, paths: Iterable[str]) -> str | None:
    """The path that is most like a glob, as a whole or by its last step."""
    wanted = glob.strip("*.")
    likeness = {
        path: max(SequenceMatcher(None, wanted, name).ratio() for name in (path, path.rpartition(".")[2]))
        for path in paths
    }
    nearest = max(likeness, key=lambda path: likeness[path])
    return nearest if likeness[nearest] >= _ALIKE else None


_ALIKE = 0.5


def format_exemption(exemption: Exemption) -> str:
    """`train="drop"`, as the marker takes it."""
    return f'{exemption[0]}="{exemption[1]}"'


def _excuse_call(call: ForwardCall, policy: Policy) -> ForwardCall:
    return replace(
        call, training=tuple(f for f in call.training if not matches(f.module.model, f.module.path, policy.train))
    )


def matches(model: str, path: str, globs: Iterable[str]) -> bool:
    """Whether a glob names this module or tensor: within its model (`bn1.*`), or as printed (`model.bn1.*`).

    What stands in brackets may be a set of characters, as globs have it, or a part of the name: `blocks[0].*`.
    """
    names = path, f"{model}.{path}" if path else model
    return any(
        fnmatchcase(name, pattern) for glob in globs for pattern in (glob, glob.replace("[", "[[]")) for name in names
    )
