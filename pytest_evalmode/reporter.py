"""How the violations of a guard are reported."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_evalmode.errors import HygieneError
from pytest_evalmode.rules import Violation


class Reporter:
    """Reports all violations as HygieneError; inside pytest, `session` replaces it."""

    def select_reported(self, violations: list[Violation]) -> list[Violation]:
        """Return the violations to report, without those that a user hook drops."""
        return violations

    def select_raised(self, violations: list[Violation]) -> list[Violation]:
        """Return the violations for which `check()` raises."""
        return violations

    def make_error(self, violations: Sequence[Violation]) -> BaseException:
        """Return the exception for some violations."""
        return HygieneError(violations)
