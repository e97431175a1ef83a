"""Fixtures for the tests of the observers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn


@pytest.fixture
def fresh() -> Iterator[None]:
    """Reset what torch has compiled, and check afterwards that no patch is left on `nn.Module.__call__`."""
    torch._dynamo.reset()
    yield
    assert not hasattr(nn.Module.__call__, "__wrapped__")
