"""The exemptions that a test's marks declare."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from pytest_evalmode.policy import ARGUMENTS, Policy, PolicyError, read_policy
from pytest_evalmode.session.settings import Settings


def policy_of(item: pytest.Item, settings: Settings, rules: Collection[str]) -> Policy:
    """Return the policy of a test: the exemptions of the ini and of all its marks, combined.

    Raises:
        PolicyError: a mark has an invalid argument.
    """
    policy = replace(settings.policy, exemptions=())  # whether the ini's are used is checked over the whole suite
    where = f"@pytest.mark.{settings.marker}"
    for mark in reversed(list(item.iter_markers(settings.marker))):
        if mark.args:
            names = ", ".join(f"{name}=" for name in ARGUMENTS)
            raise PolicyError(f"{where} takes keyword arguments only ({names}), got {mark.args[0]!r}")
        policy |= read_policy(where, mark.kwargs, rules)
    return policy
