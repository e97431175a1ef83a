"""What a test or a `guard()` declares as intended -> a frozen Policy; and what is wrong with such a declaration."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Globs = str | Sequence[str]

ARGUMENTS = ("allow", "train", "mutable", "reason")


class PolicyError(ValueError):
    """A wrong argument of the marker, of `guard()` or of an ini key."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be broken, may be in training mode, may change; and why."""

    allow: frozenset[str] = frozenset()
    train: tuple[str, ...] = ()
    mutable: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    exemptions: tuple[tuple[str, str], ...] = ()
    """Each exemption as an argument and its value, but for those of the ini, which speak for the whole suite."""

    def __post_init__(self) -> None:
        """One string, or any collection of them, will do.  Raises PolicyError on anything else."""
        object.__setattr__(self, "allow", frozenset(_strings("Policy()", "allow", self.allow)))
        for name in ("train", "mutable", "reasons"):
            object.__setattr__(self, name, _strings("Policy()", name, getattr(self, name)))

    def __or__(self, other: Policy) -> Policy:
        """Both together: marks add up."""
        return Policy(
            self.allow | other.allow,
            _merged(self.train, other.train),
            _merged(self.mutable, other.mutable),
            _merged(self.reasons, other.reasons),
            tuple(dict.fromkeys((*self.exemptions, *other.exemptions))),
        )


def read_policy(where: str, arguments: Mapping[str, object], rules: Collection[str]) -> Policy:
    """The policy that some arguments declare.

    `where` begins the error: `@pytest.mark.inference`, say.  Raises PolicyError, which names the argument, its value
    and the valid choices.
    """
    for name in arguments:
        if name not in ARGUMENTS:
            raise PolicyError(f"{where} has no argument {name!r}; {suggest_choices(name, ARGUMENTS)}")
    allow = _strings(where, "allow", arguments.get("allow", ()))
    for rule in allow:
        if rule not in rules:
            raise PolicyError(f"{where}: allow={rule!r} is no rule; {suggest_choices(rule, rules)}")
    reason = arguments.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise PolicyError(f"{where}: reason={reason!r} is a {type(reason).__name__}; it takes a string")
    if reason is not None and reason.strip() in ("...", "…"):
        raise PolicyError(
            f"{where}: reason={reason!r} stands where the reason is to stand; say why this is intended, in a few words"
        )
    train = _strings(where, "train", arguments.get("train", ()))
    mutable = _strings(where, "mutable", arguments.get("mutable", ()))
    given = (("allow", allow), ("train", train), ("mutable", mutable))
    declared = tuple((name, value) for name, values in given for value in values)
    return Policy(frozenset(allow), train, mutable, (reason,) if reason else (), declared)


def _strings(where: str, name: str, value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if isinstance(strings, list | tuple | set | frozenset) and all(isinstance(item, str) and item for item in strings):
        return tuple(strings)
    raise PolicyError(f"{where}: {name}={value!r} is no name; it takes a string or a sequence of strings, none empty")


def suggest_choices(wrong: str, valid: Collection[str]) -> str:
    """What would have been right: the nearest, then all."""
    from difflib import get_close_matches

    near = get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"valid: {', '.join(valid)}"


def _merged(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*ours, *theirs)))
