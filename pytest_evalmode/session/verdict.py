"""The verdict on a test, as pytest's own kind of failure."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_evalmode.report.message import explain
from pytest_evalmode.rules import Violation


class HygieneViolation(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """A guarded test's inference was not clean."""

    # pytest prints the message alone, in every --tb style: no line of the plugin's is of use to anybody.
    # In the summary it would print the module too, and little would be left of 80 columns.
    __module__ = "builtins"

    def __init__(self, violations: Sequence[Violation], marker: str = "inference") -> None:
        super().__init__(explain(violations, marker), pytrace=False)
        self.violations = tuple(violations)
