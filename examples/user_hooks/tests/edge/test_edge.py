"""Tests for the edge devices: both models run cleanly, but the devices support the dtype of only one."""

from __future__ import annotations

import pytest
import torch
from serving import SERVER

pytestmark = pytest.mark.inference


def test_tiny() -> None:
    assert SERVER.predict("tiny", torch.ones(3, 4, dtype=torch.float16)).shape == (3,)


def test_ranker() -> None:
    assert SERVER.predict("ranker", torch.ones(3, 4)).shape == (3,)  # float32: not supported on the devices
