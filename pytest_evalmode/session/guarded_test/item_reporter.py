"""Decides which violations of a test are reported and which fail it: after user hooks, the baseline and the mode."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_evalmode.reporter import Reporter
from pytest_evalmode.rules import Violation
from pytest_evalmode.session import user_hooks
from pytest_evalmode.session.guarded_test.outcome import HygieneViolation
from pytest_evalmode.session.settings import SETTINGS, plain_nodeid
from pytest_evalmode.session.stash import DROPPED_COUNT


class ItemReporter(Reporter):
    """Reports the violations of one test as HygieneViolation."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._settings = item.config.stash[SETTINGS]

    def select_reported(self, violations: list[Violation]) -> list[Violation]:
        """Return the violations that no user hook drops, and count the dropped ones."""
        reported = user_hooks.apply_violation_hook(self._item, violations)
        self._item.stash[DROPPED_COUNT] = len(violations) - len(reported)
        return reported

    def select_raised(self, violations: list[Violation]) -> list[Violation]:
        """Return the failing violations; under `--evalmode=warn`, `check()` raises for none."""
        return self.select_failing(violations) if self._settings.mode == "enforce" else []

    def select_failing(self, violations: list[Violation]) -> list[Violation]:
        """Return the violations that fail the test: those that the baseline does not list.

        None fail under `--evalmode-suggest`, or while the baseline is updated, so that `evalmode.check()` ends no
        test.  A test marked `xfail` still fails during an update: an expected failure must not be listed in the
        baseline.
        """
        item, settings = self._item, self._settings
        if settings.suggest:
            return []
        if settings.update_baseline:
            return violations if item.get_closest_marker("xfail") is not None else []
        known = (settings.known or {}).get(plain_nodeid(item.nodeid, item.config), frozenset())
        return [violation for violation in violations if (violation.rule, violation.model) not in known]

    def make_error(self, violations: Sequence[Violation]) -> BaseException:
        """Return the exception that fails the test."""
        return HygieneViolation(violations, self._settings.marker)
