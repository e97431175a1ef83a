"""Violations -> the text of the failure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_evalmode.rules import RULES, Rule, Violation
from pytest_evalmode.trace import Site

_MOST_NAMES = 3


def explain(violations: Sequence[Violation], marker: str | None = None) -> str:
    """The headline, what was found of each rule with its line and remedy, and how to say that it was intended.

    `marker` is the name of the marker to suggest; without one the arguments of `guard()` are.
    """
    more = f" (+{len(violations) - 1} more)" if len(violations) > 1 else ""
    first = violations[0]
    lines = [f"{first.rule}: {first.message}{more}", ""]
    width = max(len(violation.rule) for violation in violations)
    for violation in violations:
        rows = [violation.finding, *_places(violation), f"fix: {violation.remedy}"]
        heads = [violation.rule, *[""] * (len(rows) - 1)]
        lines += [f"  {head:{width}}  {row}" for head, row in zip(heads, rows, strict=True)]
    call = exemption(violations, marker)
    if call:
        lines += ["", f"  intended? {call}"]
    return "\n".join(lines)


def _places(violation: Violation) -> list[str]:
    """Where: the line that brought it about, the one that called the model, and the one at fault inside it."""
    if violation.mutable:  # the line is not at fault: it is the last forward before a change was seen
        return [f"first seen after {violation.at}"] if violation.at else []
    places = []
    if violation.since:
        places.append(f"since {_line(violation.since)}")
    if violation.at:
        places.append(_line(violation.at))
    if violation.cause and violation.cause != violation.at:
        places.append(f"in the model: {_line(violation.cause)}")
    others = violation.details.get("also_at", ())
    if others:
        places.append(f"also {', '.join(others[:_MOST_NAMES])}" + (" ..." if len(others) > _MOST_NAMES else ""))
    return places


def _line(site: Site) -> str:
    return f"{site}  {site.source}".rstrip()


def exemption(violations: Sequence[Violation], marker: str | None = None) -> str:
    """What would let this pass, if something would: the marker or, without one, `guard()` with its arguments."""
    arguments = _exempting(violations)
    if not arguments:
        return ""
    return f'@pytest.mark.{marker}({arguments}, reason="...")' if marker else f"guard({arguments})"


def _exempting(violations: Sequence[Violation]) -> str:
    """The arguments that would let this pass: by name where there are few, else by the rule."""
    allow: list[str] = []
    train: list[str] = []
    mutable: list[str] = []
    for violation in violations:
        if violation.train and all(violation.train):
            train += _short(violation.train)
        elif violation.mutable:
            mutable += _short(violation.mutable)
        elif violation.rule != "unused-exemption":
            allow.append(violation.rule)
    given = [(name, names) for name, names in (("allow", allow), ("train", train), ("mutable", mutable)) if names]
    return ", ".join(f"{name}=[{', '.join(map(_quoted, dict.fromkeys(names)))}]" for name, names in given)


def _short(paths: Sequence[str]) -> list[str]:
    """A few names as they are; tensors of one module by that module; many by their common beginning."""
    if len(paths) == 1:
        return list(paths)
    owners = list(dict.fromkeys(path.rpartition(".")[0] for path in paths))
    if len(owners) == 1 and owners[0]:
        return [f"{owners[0]}.*"]
    return list(paths) if len(paths) <= _MOST_NAMES else ["*"]


def rules_table(rules: Iterable[Rule] = RULES) -> str:
    """The rules with when they fire and what to do, for `--evalmode-rules`."""
    return "\n\n".join(
        f"{rule.name} ({rule.level})\n  fires when {rule.fires_when}\n  fix: {rule.remedy}" for rule in rules
    )


def _quoted(name: str) -> str:
    return f'"{name}"'
