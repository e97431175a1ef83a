"""The results of a session, collected from the reports of its tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_evalmode.report.ledger import Ledger
    from pytest_evalmode.report.suggest import Suggestion


@dataclass(slots=True)
class SessionResults:
    """The results of guarded tests, and the unguarded tests that ran."""

    ledger: Ledger | None = None
    """The guarded tests; None until the first is added or an empty report is written."""
    unguarded: set[str] = field(default_factory=set)
    """Node ids of the tests that passed without a guard."""
    suggestions: dict[str, Suggestion] = field(default_factory=dict)

    def get_ledger(self) -> Ledger:
        """Return the ledger; the first call creates it."""
        from pytest_evalmode.report.ledger import Ledger

        if self.ledger is None:
            self.ledger = Ledger()
        return self.ledger
