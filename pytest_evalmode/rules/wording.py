"""How rules count and name things: one voice for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_evalmode.trace import ModuleInfo


def plural(n: int, noun: str) -> str:
    """`1 forward`, `2 forwards`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def title(part: ModuleInfo) -> str:
    """A module in a headline: `model (ResNet)`, or `ResNet` alone where it is named after its type."""
    return part.type if part.name == part.type else str(part)


def titles(parts: Iterable[ModuleInfo]) -> list[str]:
    return [title(part) for part in parts]


def first_and_more(names: Sequence[str]) -> str:
    """`a`, or `a and 52 more`."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
