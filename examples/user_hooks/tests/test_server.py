"""Tests for the data center: any dtype is supported, but the weights must not change."""

from __future__ import annotations

import pytest
import torch
from serving import SERVER

pytestmark = pytest.mark.inference


def test_ranker() -> None:
    assert SERVER.predict("ranker", torch.ones(3, 4)).shape == (3,)


def test_warm_up_of_the_other_model() -> None:
    SERVER.predict("ranker", torch.ones(3, 4))
    with torch.no_grad():
        SERVER.models()["tiny"].get_parameter("0.weight").mul_(2)  # the mistake: it does not run, but it is watched
