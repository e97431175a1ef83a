"""Autograd in forwards that raise: only the layers that ran to their end have recorded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nets import batch, rules, watching


class FailsAfter(nn.Module):
    """Raises after it ran some of its two layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.body, self.head)[: self.layers]:
            x = layer(x)
        raise ValueError("on purpose")


def test_a_forward_that_raised_before_any_layer_is_clean() -> None:
    with watching(strict=True) as g, pytest.raises(ValueError, match="on purpose"):
        FailsAfter(0).eval()(batch())
    assert "grad-mode" not in rules(g)


@pytest.mark.parametrize("model", [nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2), nn.ReLU())])
def test_a_first_layer_that_raised_is_clean(model: nn.Module) -> None:
    with watching(strict=True) as g, pytest.raises(RuntimeError):
        model.eval()(batch(8, 5))
    assert "grad-mode" not in rules(g)


def test_a_layer_that_ran_to_its_end_is_reported() -> None:
    with watching() as g, pytest.raises(ValueError, match="on purpose"):
        FailsAfter(1).eval()(batch())
    assert rules(g) == {"grad-mode"}


def test_a_layer_under_no_grad_is_clean() -> None:
    with watching(strict=True) as g, torch.no_grad(), pytest.raises(ValueError, match="on purpose"):
        FailsAfter(1).eval()(batch())
    assert g.violations == []


def test_a_forward_that_returns_none_is_reported() -> None:
    class ReturnsNone(FailsAfter):
        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            return None  # type: ignore[return-value]

    with watching() as g:
        ReturnsNone(1).eval()(batch())
    assert rules(g) == {"grad-mode"}
