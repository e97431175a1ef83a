"""Which modules behave differently in training mode, with the settings that they have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_evalmode.observe.models.mode_dependence import is_mode_dependent
from tests.nets import only, rules, watching


class DropPath(nn.Module):
    """A stochastic depth as libraries write it."""

    def __init__(self, drop_prob: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        return x * torch.empty(len(x), 1).bernoulli_(1 - self.drop_prob)


class FilterBank(nn.Module):
    """A fixed transform with frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.ParameterList(nn.Parameter(torch.ones(1, 1, 3), requires_grad=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.conv1d(x.unsqueeze(1), tap) for tap in self.taps], 1)


class Doubles(nn.Module):
    """Depends on the mode without drawing random numbers, whatever its setting."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


class Jitter(nn.Module):
    """Its only number is zero, yet it draws in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mean + torch.randn_like(x) if self.training else x


class Quiet(nn.Dropout):
    """A dropout with a forward of its own, which `p` says nothing about."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


SAME: dict[str, Callable[[], nn.Module]] = {
    "dropout of zero": lambda: nn.Dropout(0.0),
    "dropout of zero in two dimensions": lambda: nn.Dropout2d(0),
    "alpha dropout of zero": lambda: nn.AlphaDropout(0.0),
    "stochastic depth of zero": lambda: DropPath(0.0),
    "instance norm": lambda: nn.InstanceNorm1d(4),
    "batch norm that tracks nothing": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "LSTM of one layer": lambda: nn.LSTM(4, 4, dropout=0.0),
    "GRU without dropout": lambda: nn.GRU(4, 4, 2),
    "attention without dropout": lambda: nn.MultiheadAttention(4, 2),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, dropout=0.0),
}
DIFFERENT: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(1e-3),
    "stochastic depth": lambda: DropPath(0.1),
    "doubles": Doubles,
    "instance norm that tracks": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "batch norm without momentum": lambda: nn.BatchNorm1d(4, momentum=0.0),
    "LSTM with dropout": lambda: nn.LSTM(4, 4, 2, dropout=0.1),
    "attention": lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
    "RReLU": nn.RReLU,
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_settings_without_effect(make: Callable[[], nn.Module]) -> None:
    assert not is_mode_dependent(make())


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_settings_with_effect(make: Callable[[], nn.Module]) -> None:
    assert is_mode_dependent(make())


ALONE: dict[str, Callable[[], nn.Module]] = {
    "dropout of zero": lambda: nn.Dropout(0.0),
    "instance norm": lambda: nn.InstanceNorm1d(2),
    "stochastic depth of zero": lambda: DropPath(0.0),
    "filter bank": FilterBank,
    "frozen layers": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.0)).requires_grad_(False),
    "frozen encoder": lambda: nn.TransformerEncoderLayer(4, 2, dropout=0.0).requires_grad_(False),
}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_a_module_that_is_the_same_in_both_modes_is_clean(make: Callable[[], nn.Module], strict: bool) -> None:
    with watching(strict=strict) as g:
        make().train()(torch.randn(2, 4))
    assert g.violations == []


FAULTY: dict[str, Callable[[], nn.Module]] = {
    "a layer that trains": lambda: nn.Linear(4, 4),
    "one parameter that trains": lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)),
    "a frozen layer before dropout": lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Dropout()),
    "frozen batch norm": lambda: nn.Sequential(nn.BatchNorm1d(4)).requires_grad_(False),
    "a dropout that ignores p": lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), Quiet(0.0)),
    "it draws although its number is zero": lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), Jitter()),
}


@pytest.mark.parametrize("make", FAULTY.values(), ids=FAULTY)
@torch.no_grad()
def test_a_module_whose_mode_matters_is_reported(make: Callable[[], nn.Module]) -> None:
    with watching() as g:
        make().train()(torch.randn(8, 4))
    assert "train-mode" in rules(g)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "unfrozen": lambda model: model[0].requires_grad_(True),
    "dropout turned on": lambda model: setattr(model[1], "p", 0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_a_setting_that_changes_between_forwards_counts(change: Callable[[nn.Sequential], object]) -> None:
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Dropout(0.0)).train()
    with watching() as g:
        model(torch.randn(8, 4))
        change(model)
        model(torch.randn(8, 4))
    assert only(g, "train-mode").count == 1


@torch.no_grad()
def test_statistics_of_the_batch_are_reported_in_training_mode_too() -> None:
    """eval() does not change a batch norm without running statistics, so `train-mode` would not be fixed by it."""
    norm = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    with watching() as g:
        nn.Sequential(nn.Linear(4, 4), norm).requires_grad_(False)(torch.randn(8, 4))
    assert rules(g) == {"batch-stats"}
