"""What the tests of a session found, as their reports tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_evalmode.report.ledger import Ledger
    from pytest_evalmode.report.suggest import Suggestion


@dataclass(slots=True)
class SessionResults:
    """What guarded tests found, and which others there were."""

    ledger: Ledger | None = None
    """None until a guarded test has been entered, or there is a file to write of none."""
    unguarded: set[str] = field(default_factory=set)
    """Tests that passed without a guard."""
    suggestions: dict[str, Suggestion] = field(default_factory=dict)

    def get_ledger(self) -> Ledger:
        """The ledger, which there is from now on."""
        from pytest_evalmode.report.ledger import Ledger

        if self.ledger is None:
            self.ledger = Ledger()
        return self.ledger
