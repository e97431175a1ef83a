"""The baseline file at the end of a session: its stale entries, or its update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session.record.report_files import FileMessage, write_or_report
from pytest_evalmode.session.record.results import SessionResults
from pytest_evalmode.session.settings import SETTINGS, is_whole_suite

if TYPE_CHECKING:
    from pytest_evalmode.report.baseline import KnownViolations, ObservedViolations


def find_stale(results: SessionResults, known: KnownViolations) -> list[tuple[str, str]]:
    """Return the entries of the baseline whose tests ran without breaking that rule."""
    from pytest_evalmode.report import baseline

    return baseline.find_stale(known, _observed_violations(results))


def update(
    results: SessionResults, config: pytest.Config, exitstatus: int, is_gone: Callable[[str], bool]
) -> FileMessage | None:
    """Update the file; in a distributed run, only the first rank does.

    Entries of tests that no longer exist are removed only if the whole suite ran to its end.
    """
    from pytest_evalmode.file_writing import replace_file
    from pytest_evalmode.report.baseline import format_baseline, merge_observed

    settings = config.stash[SETTINGS]
    path, rank = settings.baseline, settings.rank
    if path is None or (rank is not None and rank.number) or exitstatus == pytest.ExitCode.INTERNAL_ERROR:
        return None
    finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    whole_suite = finished and is_whole_suite(config)
    observed = _observed_violations(results)
    known = merge_observed(settings.known or {}, observed, lambda test: whole_suite and is_gone(test))
    data = format_baseline(known).encode("utf-8")
    error = write_or_report("--evalmode-update-baseline", path, lambda path: replace_file(path, data))
    violations = sum(map(len, known.values()))
    summary = f"{violations} known violations in {len(known)} tests" if violations else "no known violation"
    return error or FileMessage(f"evalmode baseline: {path}: {summary}")


def _observed_violations(results: SessionResults) -> dict[str, ObservedViolations]:
    """Return the violations of each test that ran; an unguarded test has none."""
    from pytest_evalmode.report.baseline import ObservedViolations

    guarded = results.ledger.observed_violations() if results.ledger else {}
    return {**{nodeid: ObservedViolations(frozenset()) for nodeid in results.unguarded}, **guarded}
