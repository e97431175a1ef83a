"""The results of a session, collected from the reports of its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_evalmode.report.ledger import Ledger
    from pytest_evalmode.report.suggest import Suggestion


class SessionResults:
    """The results of guarded tests, and the unguarded tests that ran."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        """The guarded tests; None until the first is added or an empty report is written."""
        self.unguarded: set[str] = set()
        """Node ids of the tests that passed without a guard."""
        self.suggestions: dict[str, Suggestion] = {}

    def get_ledger(self) -> Ledger:
        """Return the ledger; the first call creates it."""
        from pytest_evalmode.report.ledger import Ledger

        if self.ledger is None:
            self.ledger = Ledger()
        return self.ledger
