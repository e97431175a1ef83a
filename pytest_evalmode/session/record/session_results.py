"""The results of a session, which reports and the baseline are written from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_evalmode.report.baseline import ObservedViolations
    from pytest_evalmode.report.suggest import Suggestion


class SessionResults:
    """The records of guarded tests, and the unguarded tests that ran."""

    def __init__(self) -> None:
        self.guarded: dict[str, dict[str, Any]] = {}
        """The records of the guarded tests by node id, as in `report/records.py`."""
        self.unguarded: set[str] = set()
        """Node ids of the tests that passed without a guard."""
        self.suggestions: dict[str, Suggestion] = {}
        self.stale: list[tuple[str, str]] = []
        """Test and rule of the entries of the baseline whose tests ran without breaking that rule."""

    def observed_violations(self) -> dict[str, ObservedViolations]:
        """Return the violations of each test that ran; an unguarded test has none."""
        from pytest_evalmode.report.baseline import ObservedViolations, observed_violations

        unguarded = dict.fromkeys(self.unguarded, ObservedViolations(frozenset()))
        return {**unguarded, **observed_violations(self.guarded.values())}
