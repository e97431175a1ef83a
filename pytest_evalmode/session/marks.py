"""What the marks of a test declare as intended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from pytest_evalmode.policy import ARGUMENTS, Policy, PolicyError, read_policy
from pytest_evalmode.session.settings import Settings


def policy_of(item: pytest.Item, settings: Settings, rules: Collection[str]) -> Policy:
    """What a test declares, its marks added up from the outermost to its own.

    Raises PolicyError on a wrong argument of a mark.
    """
    policy = replace(settings.policy, exemptions=())  # judged over the whole suite, not by each test
    where = f"@pytest.mark.{settings.marker}"
    for mark in reversed(list(item.iter_markers(settings.marker))):
        if mark.args:
            names = ", ".join(f"{name}=" for name in ARGUMENTS)
            raise PolicyError(f"{where}: {mark.args[0]!r} was given without a name; it takes {names}")
        policy |= read_policy(where, mark.kwargs, rules)
    return policy
