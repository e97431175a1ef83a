"""What is written as a run ends: the report, the page, the step's summary and the baseline; and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.lock.keeper import Collected
from pytest_evalmode.session.settings import SETTINGS, is_toml, is_whole_suite, step_summary

if TYPE_CHECKING:
    from pytest_evalmode.report.baseline import Seen
    from pytest_evalmode.report.ledger import Ledger
    from pytest_evalmode.report.suggest import Suggestion


@dataclass(slots=True)
class Kept:
    """What the reports of a session's tests brought."""

    ledger: Ledger | None = None
    """None where no test was guarded."""
    unguarded: set[str] = field(default_factory=set)
    """Tests that passed without a guard."""
    suggestions: dict[str, Suggestion] = field(default_factory=dict)

    def filled(self) -> Ledger:
        """The ledger, empty if it must be."""
        from pytest_evalmode.report.ledger import Ledger

        if self.ledger is None:
            self.ledger = Ledger()
        return self.ledger

    def seen(self) -> Mapping[str, Seen]:
        """What each test that ran was seen to break; one that is guarded no more breaks nothing."""
        from pytest_evalmode.report.baseline import Seen

        guarded = self.ledger.seen() if self.ledger else {}
        return {**{nodeid: Seen(frozenset()) for nodeid in self.unguarded}, **guarded}


class Files:
    """Writes what the options ask for."""

    def __init__(self, config: pytest.Config, collected: Collected, kept: Kept) -> None:
        self.told: list[tuple[str, bool]] = []
        """What became of the files, and whether that is an error."""
        self.stale: list[tuple[str, str]] = []
        """The entries of the baseline that are mended."""
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._collected = collected
        self._kept = kept

    def write(self, session: pytest.Session, exitstatus: int) -> None:
        """Write all; a file that cannot be written makes a run that passed fail."""
        settings = self._settings
        for what, path, write in (
            ("report", settings.report, self._write_report),
            ("html", settings.html, self._write_page),
        ):
            if path is not None and not self._written(f"--evalmode-{what}", path, write):
                session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
            elif path is not None:
                self.told.append((f"evalmode {what}: {path}", False))
        summary = step_summary()
        if summary is not None and self._kept.ledger:
            self._written("GITHUB_STEP_SUMMARY", summary, self._write_step_summary)
        if settings.known is not None and settings.mode != "off" and not settings.suggest:
            self._compare_with_baseline(session, exitstatus)

    def _written(self, option: str, path: Path, write: Callable[[Path], None]) -> bool:
        """Write a file; False, to be told, if that failed: pytest has yet to tell how the tests ended."""
        try:
            write(path)
        except OSError as error:
            self.told.append((f"{option}: {path} could not be written: {error.strerror}", True))
            return False
        return True

    def _write_report(self, path: Path) -> None:
        self._kept.filled().write(path, self._settings.mode, self._settings.strict)

    def _write_page(self, path: Path) -> None:
        """Write the page; folders on the way are made."""
        from pytest_evalmode.report import suggest
        from pytest_evalmode.report.page import page

        ledger, settings, suggestions = self._kept.filled(), self._settings, self._kept.suggestions
        text = page(
            list(ledger.tests),
            totals=ledger.totals(),
            mode=settings.mode,
            strict=settings.strict,
            known=settings.listed,
            unmarked=suggest.unmarked(suggestions),
            advice=list(suggest.advice(suggestions, settings.marker, toml=is_toml(self._config))),
            failed=suggest.failed(suggestions),
            unguarded=0 if settings.suggest else len(self._kept.unguarded),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _write_step_summary(self, path: Path) -> None:
        """Add to what other steps of the job have written."""
        from pytest_evalmode.report.markdown import markdown

        ledger = self._kept.filled()
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown(list(ledger.tests), ledger.totals(), self._settings.listed))

    def _compare_with_baseline(self, session: pytest.Session, exitstatus: int) -> None:
        from pytest_evalmode.report.baseline import stale

        if self._settings.update_baseline:
            self._update_baseline(session, exitstatus)
            return
        self.stale = stale(self._settings.known or {}, self._kept.seen())
        if self.stale and self._settings.strict:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def _update_baseline(self, session: pytest.Session, exitstatus: int) -> None:
        from pytest_evalmode.files import replace_file
        from pytest_evalmode.report.baseline import text, updated

        path, rank = self._settings.baseline, self._settings.rank
        if path is None or (rank is not None and rank.number) or exitstatus == pytest.ExitCode.INTERNAL_ERROR:
            return
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        whole = ended and is_whole_suite(self._config)
        seen = self._kept.seen()
        known = updated(self._settings.known or {}, seen, lambda test: whole and self._collected.is_gone(test))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text(known).encode("utf-8"))
        except OSError as error:
            told = f"--evalmode-update-baseline: {path} could not be written: {error.strerror}"
            self.told.append((told, True))
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
            return
        violations = sum(map(len, known.values()))
        told = f"{violations} known violations in {len(known)} tests" if violations else "no known violation"
        self.told.append((f"evalmode baseline: {path}: {told}", False))
