"""The exceptions and warnings that users see.

Their `__module__` is the package, from which users import them; this also keeps pytest's short summary short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_evalmode.report.message import failure_text
from pytest_evalmode.rules import Violation


class HygieneError(AssertionError):
    """Raised when an inference guarded by `guard()` was not clean.

    Attributes:
        violations: the reported violations, a tuple of `Violation`.
    """

    __module__ = "pytest_evalmode"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(failure_text(violations))
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.violations,), self.__dict__  # so that a worker process can send it to its parent


class GuardError(RuntimeError):
    """Raised when the guard itself failed, so that it is not known whether the inference was clean."""

    __module__ = "pytest_evalmode"


class EvalModeWarning(UserWarning):
    """Issued instead of a failure when an inference was not clean under `--evalmode=warn`."""

    __module__ = "pytest_evalmode"
