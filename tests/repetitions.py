"""Parameters of which `make test` runs a representative part and `make test-all` all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_repetitions(values: Iterable[Any], representatives: Collection[Any]) -> list[Any]:
    """Return values to parametrize a test with; those that are not representatives are marked as repetitions."""
    return [
        value if value in representatives else pytest.param(value, marks=pytest.mark.repetition) for value in values
    ]
