"""Fail a test when its PyTorch inference was not clean.

Mark it with `@pytest.mark.inference`; outside pytest, use `guard()` and `inference()`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_evalmode.errors import EvalModeWarning, GuardError, HygieneError
    from pytest_evalmode.evaluation import inference
    from pytest_evalmode.guards import Guard, guard
    from pytest_evalmode.lock.lock_file import LockError, NewerVersionError
    from pytest_evalmode.policy import Policy, PolicyError
    from pytest_evalmode.report.baseline import BaselineError
    from pytest_evalmode.rules import Rule, RuleError, Violation, rule
    from pytest_evalmode.session.guarded_test.outcome import HygieneViolation
    from pytest_evalmode.session.user_hooks import HookError
    from pytest_evalmode.trace import Trace

__all__ = [
    "BaselineError",
    "EvalModeWarning",
    "Guard",
    "GuardError",
    "HookError",
    "HygieneError",
    "HygieneViolation",
    "LockError",
    "NewerVersionError",
    "Policy",
    "PolicyError",
    "Rule",
    "RuleError",
    "Trace",
    "Violation",
    "guard",
    "inference",
    "rule",
]
__version__ = "0.2.0"

# Names are imported when they are first used: scripts that use `guard` must not import pytest, and pytest runs without
# a guarded test must not import torch.  The module is named `guards` because importing a module named `guard` would
# replace the function of that name.
_HOMES = {
    "errors": ("EvalModeWarning", "GuardError", "HygieneError"),
    "evaluation": ("inference",),
    "guards": ("Guard", "guard"),
    "lock.lock_file": ("LockError", "NewerVersionError"),
    "policy": ("Policy", "PolicyError"),
    "report.baseline": ("BaselineError",),
    "rules": ("Rule", "RuleError", "Violation", "rule"),
    "session.guarded_test.outcome": ("HygieneViolation",),
    "session.user_hooks": ("HookError",),
    "trace": ("Trace",),
}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
