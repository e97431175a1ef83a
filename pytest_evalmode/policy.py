"""The exemptions that a test or a `guard()` declares, and the errors for invalid ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Globs = str | Sequence[str]

ARGUMENTS = ("allow", "train", "mutable", "reason")


class PolicyError(ValueError):
    """Raised for an invalid argument of the marker or of `guard()`, or an invalid value of an ini key."""

    __module__ = "pytest_evalmode"


@dataclass(frozen=True, slots=True)
class Policy:
    """The exemptions of a test or a guard.  Policies are combined with `|`.

    Attributes:
        allow: names of rules that may be broken.
        train: globs of qualified module names; these modules may be in training mode.
        mutable: globs of qualified tensor names; these tensors may change.
        reasons: why, as shown in the reports.
        exemptions: each exemption as (argument, value), without those of the ini: they apply to the whole suite.

    Each of the first four takes one string or a collection of strings.  Anything else raises PolicyError.
    """

    allow: frozenset[str] = frozenset()
    train: tuple[str, ...] = ()
    mutable: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    exemptions: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow", frozenset(read_strings("Policy()", "allow", self.allow)))
        for name in ("train", "mutable", "reasons"):
            unique = dict.fromkeys(read_strings("Policy()", name, getattr(self, name)))
            object.__setattr__(self, name, tuple(unique))

    def __or__(self, other: Policy) -> Policy:
        return Policy(
            self.allow | other.allow,
            (*self.train, *other.train),
            (*self.mutable, *other.mutable),
            (*self.reasons, *other.reasons),
            tuple(dict.fromkeys((*self.exemptions, *other.exemptions))),
        )


def read_policy(where: str, arguments: Mapping[str, object], rules: Collection[str]) -> Policy:
    """Return the policy for the arguments of a marker, a `guard()` or the ini, which errors name as `where`."""
    for name in arguments:
        if name not in ARGUMENTS:
            raise PolicyError(f"{where}: unknown argument {name!r} ({suggest_choices(name, ARGUMENTS)})")
    allow = read_strings(where, "allow", arguments.get("allow", ()))
    for rule in allow:
        if rule not in rules:
            raise PolicyError(f"{where}: unknown rule in allow={rule!r} ({suggest_choices(rule, rules)})")
    reason = arguments.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise PolicyError(f"{where}: reason must be a string, not {reason!r}")
    if reason is not None and reason.strip() in ("...", "…"):
        raise PolicyError(f"{where}: replace the placeholder reason={reason!r} with the reason")
    train, mutable = (read_strings(where, name, arguments.get(name, ())) for name in ("train", "mutable"))
    given = (("allow", allow), ("train", train), ("mutable", mutable))
    exemptions = tuple((name, value) for name, values in given for value in values)
    return Policy(frozenset(allow), train, mutable, (reason,) if reason else (), exemptions)


def read_strings(where: str, name: str, value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if isinstance(strings, list | tuple | set | frozenset) and all(isinstance(item, str) and item for item in strings):
        return tuple(strings)
    raise PolicyError(f"{where}: {name} must be a non-empty string or a sequence of them, not {value!r}")


def suggest_choices(invalid: str, valid: Collection[str]) -> str:
    """Return the hint of an error message: a similar valid name, if there is one, and all valid names."""
    from difflib import get_close_matches

    similar = get_close_matches(invalid, valid, n=1, cutoff=0.5)
    return (f"did you mean {similar[0]!r}? " if similar else "") + f"choose from {', '.join(valid)}"
