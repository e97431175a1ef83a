"""A forward that raised recorded no more than what ran to its end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nets import batch, rules, watching


class FailsAfter(nn.Module):
    """Fails before, in, or after its one layer."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.body, self.head)[: self.layers]:
            x = layer(x)
        raise ValueError("as it is meant")


def test_nothing_ran() -> None:
    with watching(strict=True) as g, pytest.raises(ValueError, match="as it is meant"):
        FailsAfter(0).eval()(batch())
    assert "grad-mode" not in rules(g)


@pytest.mark.parametrize("model", [nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2), nn.ReLU())])
def test_the_first_layer_failed(model: nn.Module) -> None:
    with watching(strict=True) as g, pytest.raises(RuntimeError):
        model.eval()(batch(8, 5))
    assert "grad-mode" not in rules(g)


def test_a_layer_ran_to_its_end_and_recorded() -> None:
    with watching() as g, pytest.raises(ValueError, match="as it is meant"):
        FailsAfter(1).eval()(batch())
    assert rules(g) == {"grad-mode"}


def test_a_layer_ran_under_no_grad() -> None:
    with watching(strict=True) as g, torch.no_grad(), pytest.raises(ValueError, match="as it is meant"):
        FailsAfter(1).eval()(batch())
    assert g.violations == []


def test_one_that_returns_nothing_did_not_raise() -> None:
    class Silent(FailsAfter):
        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            return None  # type: ignore[return-value]

    with watching() as g:
        Silent(1).eval()(batch())
    assert rules(g) == {"grad-mode"}
