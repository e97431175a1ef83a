"""The hooks that teams can implement, in a plugin or a conftest.py: one in a directory rules that directory."""

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
    """Change what a guarded test declares as intended.

    `policy` is what its marks and the ini say.  Return another one, `policy | Policy(train=("drop",))` say; None leaves
    it.  The first that is returned counts.
    """


@pytest.hookspec
def pytest_evalmode_models(item: pytest.Item) -> Mapping[str, nn.Module] | Iterable[nn.Module] | None:
    """Find further models to watch from the start of a test's window, by name where they have one.

    For models that live where the guard does not look: in a registry, a server, an object of the team's own.
    """


@pytest.hookspec
def pytest_evalmode_rules() -> Iterable[Rule] | None:
    """Add rules of the team's own, each made with `pytest_evalmode.rule`."""


@pytest.hookspec
def pytest_evalmode_violation(item: pytest.Item, violation: Violation) -> bool | None:
    """Look at a violation before it is told; False drops it.

    Asked whenever the violations are, by `evalmode.check()` too: answer, and do nothing else.
    """
