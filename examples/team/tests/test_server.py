"""In the data centre: any dtype will do, but nobody may touch the weights."""

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
        SERVER.models()["tiny"].get_parameter("0.weight").mul_(2)  # the mistake: it never runs here, but it is watched
