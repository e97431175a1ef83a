"""Shared by the tests of what is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn


@pytest.fixture
def fresh() -> Iterator[None]:
    """What torch has compiled before is forgotten, and afterwards nothing of ours is left on the method."""
    torch._dynamo.reset()
    yield
    assert not hasattr(nn.Module.__call__, "__wrapped__")
