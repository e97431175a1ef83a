"""Wording that all messages share: counts, and names of modules."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_evalmode.trace import ModuleInfo


def plural(n: int, noun: str) -> str:
    """Return a count with its noun: `1 forward`, `2 forwards`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def times(n: int) -> str:
    """Return how often: `once`, `2 times`."""
    return "once" if n == 1 else f"{n} times"


def title(module: ModuleInfo) -> str:
    """Return a module for a headline: `model (ResNet)`, or `ResNet` if the model is named after its type."""
    return module.type if module.name == module.type else str(module)


def first_and_more(names: Sequence[str]) -> str:
    """Return the first name and how many follow: `a`, `a and 52 more`."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
