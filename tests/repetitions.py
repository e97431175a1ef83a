"""Parameters of which `make test` runs a representative part and `make test-all` all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
PARTS = ["a part", pytest.param("the rest", marks=pytest.mark.repetition)]
"""Values of a parameter `part` for tests of many cases; see `take_part`."""


def mark_repetitions(values: Iterable[Any], representatives: Collection[Any]) -> list[Any]:
    """Return values to parametrize a test with; those that are not representatives are marked as repetitions."""
    return [
        value if value in representatives else pytest.param(value, marks=pytest.mark.repetition) for value in values
    ]


def take_part(cases: Iterable[T], part: str, step: int = 5) -> list[T]:
    """Return every n-th case, or the others."""
    return [case for number, case in enumerate(cases) if (number % step == 0) == (part == "a part")]
