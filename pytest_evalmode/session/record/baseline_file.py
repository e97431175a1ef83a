"""The file of known violations, as the session ends: what of it is stale, or what it is to say from now on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session.record.report_files import FileMessage, write_or_report
from pytest_evalmode.session.record.results import SessionResults
from pytest_evalmode.session.settings import SETTINGS, is_whole_suite

if TYPE_CHECKING:
    from pytest_evalmode.report.baseline import KnownViolations, ObservedViolations


def find_stale(found: SessionResults, known: KnownViolations) -> list[tuple[str, str]]:
    """What the tests no longer break."""
    from pytest_evalmode.report import baseline

    return baseline.find_stale(known, _seen(found))


def update(
    found: SessionResults, config: pytest.Config, exitstatus: int, is_gone: Callable[[str], bool]
) -> FileMessage | None:
    """Rewrite the file; of a run of ranks the first does.

    What is gone is asked for in a run of the whole suite that came to its end.
    """
    from pytest_evalmode.report.baseline import format_baseline, merge_observed

    settings = config.stash[SETTINGS]
    path, rank = settings.baseline, settings.rank
    if path is None or (rank is not None and rank.number) or exitstatus == pytest.ExitCode.INTERNAL_ERROR:
        return None
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    whole = ended and is_whole_suite(config)
    known = merge_observed(settings.known or {}, _seen(found), lambda test: whole and is_gone(test))
    wrong = write_or_report("--evalmode-update-baseline", path, lambda path: _write(path, format_baseline(known)))
    violations = sum(map(len, known.values()))
    told = f"{violations} known violations in {len(known)} tests" if violations else "no known violation"
    return wrong or FileMessage(f"evalmode baseline: {path}: {told}")


def _write(path: Path, text: str) -> None:
    """Write the file whole; folders on the way are made."""
    from pytest_evalmode.file_writing import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode("utf-8"))


def _seen(found: SessionResults) -> dict[str, ObservedViolations]:
    """What each test that ran was seen to break; one that is guarded no more breaks nothing."""
    from pytest_evalmode.report.baseline import ObservedViolations

    guarded = found.ledger.observed_violations() if found.ledger else {}
    return {**{nodeid: ObservedViolations(frozenset()) for nodeid in found.unguarded}, **guarded}
