"""The order in which modules in training mode are named, and what is reported as training mode at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_evalmode.rules import Violation
from tests.nets import watching

STRICT = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


def training_violation(model: nn.Module, x: Tensor, *, strict: bool) -> Violation:
    with torch.no_grad(), watching(model, strict=strict) as g:
        model(x)
    (violation,) = (each for each in g.violations if each.rule == "train-mode")
    return violation


class Checkpointed(nn.Module):
    """Reads its mode only to decide whether to checkpoint."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.saves_memory = False
        self.body = nn.Sequential(nn.Linear(4, 4), *parts)

    def forward(self, x: Tensor) -> Tensor:
        if self.saves_memory and self.training:
            x = checkpoint(self.body, x, use_reentrant=False)
        y: Tensor = self.body(x)
        return y


class Classifier(nn.Module):
    """A functional dropout of rate 0 in the head, as many architectures have it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0.0
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, training=self.training)
        y: Tensor = self.head(x)
        return y


class Checked(nn.Module):
    """A leaf that reads its mode and computes the same in both."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training or x.isfinite().all()
        return x


class DropPath(nn.Module):
    """Drops whole samples in training mode."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1), 1 - self.drop_prob))


@STRICT
@pytest.mark.parametrize(
    ("model", "first"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.BatchNorm1d(4), nn.Dropout()),
            "Sequential.2 (BatchNorm1d)",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), DropPath(0.1)), "Sequential.2 (DropPath)"),
        (nn.Sequential(nn.Linear(4, 4), DropPath(0.0), nn.Dropout()), "Sequential.2 (Dropout)"),
        (nn.Sequential(nn.Linear(4, 4), Checked(), nn.Dropout()), "Sequential.2 (Dropout)"),
        (nn.Sequential(Checkpointed(), nn.Dropout()), "Sequential.1 (Dropout)"),
        (Checkpointed(nn.Dropout(0.1)), "Checkpointed.body.1 (Dropout)"),
        (Checkpointed(Checkpointed(Checked())), "Checkpointed.body.1.body.1 (Checked)"),
        (Classifier(), "Classifier.body.1 (BatchNorm1d)"),
        # Look-alikes: nothing in these is more telling than the model itself, or than the first of two.
        (Checkpointed(), "Checkpointed (Checkpointed)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)), "Sequential.1 (Dropout)"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout()), "Sequential.1 (Dropout)"),
        (nn.Sequential(nn.LSTM(4, 4)), "Sequential.0 (LSTM)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_module_that_changes_the_result_is_named_first(model: nn.Module, first: str, strict: bool) -> None:
    violation = training_violation(model, torch.randn(8, 4), strict=strict)
    assert violation.subjects[0] == first
    assert violation.finding.startswith(first.removesuffix(f" ({first.partition(' ')[0]})"))


@STRICT
def test_an_instance_norm_without_statistics_is_not_named_first(strict: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.Dropout())
    assert "Dropout" in training_violation(model, torch.randn(2, 3, 8, 8), strict=strict).subjects[0]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True), nn.Dropout())
    assert "InstanceNorm2d" in training_violation(model, torch.randn(2, 3, 8, 8), strict=strict).subjects[0]
