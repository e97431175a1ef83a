"""Hooks that users can implement in a plugin or a conftest.py; a conftest.py applies to its directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from pytest_evalmode.policy import Policy
    from pytest_evalmode.rules import Rule, Violation


@pytest.hookspec(firstresult=True)
def pytest_evalmode_policy(item: pytest.Item, policy: Policy) -> Policy | None:
    """Change the policy of a guarded test.  The first result that is not None is used.

    Args:
        item: the test.
        policy: the exemptions of its marks and of the ini.

    Returns:
        Another policy, e.g. `policy | Policy(train=("drop",))`, or None to keep `policy`.
    """


@pytest.hookspec
def pytest_evalmode_models(item: pytest.Item) -> Mapping[str, nn.Module] | Iterable[nn.Module] | None:
    """Return further models to watch from the start of a test's window.

    Use it for models that no fixture passes to the test, e.g. those in a registry or a server.

    Returns:
        A mapping of names to models, or an iterable of models, which are named after their type.
    """


@pytest.hookspec
def pytest_evalmode_rules() -> Iterable[Rule] | None:
    """Return custom rules, each created with `pytest_evalmode.rule`."""


@pytest.hookspec
def pytest_evalmode_violation(item: pytest.Item, violation: Violation) -> bool | None:
    """Return False to drop a violation.

    Called each time the violations are computed, e.g. by `evalmode.check()`, so it must not have side effects.
    """
