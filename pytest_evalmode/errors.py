"""What is raised: the verdict, and the failure to reach one.

Each says that it comes from the package, where it is imported from: a summary line has no room for more.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_evalmode.report.message import failure_text
from pytest_evalmode.rules import Violation


class HygieneError(AssertionError):
    """An inference that was guarded by `guard()` was not clean."""

    __module__ = "pytest_evalmode"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(failure_text(violations))
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[type[HygieneError], tuple[tuple[Violation, ...]]]:
        return type(self), (self.violations,)  # a worker process hands it to its parent


class GuardError(RuntimeError):
    """The guard itself failed: whether the inference was clean is not known."""

    __module__ = "pytest_evalmode"


class EvalModeWarning(UserWarning):
    """An inference was not clean, and `--evalmode=warn` asked only to be told."""

    __module__ = "pytest_evalmode"
