"""Modules that are no ordinary layers: bare holders, lazy ones, and those that come as the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from tests.nets import batch, only, rules, watching


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


# --- bare nn.Module


def test_a_bare_holder_has_no_mode() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), Scale()).eval())
    with watching() as g:
        graph(batch())
    assert g.violations == []


def test_a_class_of_one_s_own_that_holds_parameters_has() -> None:
    class Holder(nn.Module):
        pass

    model = Scale().eval()
    model.extra = Holder()
    model.extra.w = nn.Parameter(torch.ones(1))
    with watching() as g:
        model(batch())
    assert only(g, "train-mode").subjects == ("Scale.extra (Holder)",)


# --- lazy by itself


class OwnLazy(nn.Module):
    """Lazy without torch's mixin: a hook gives it its shape, and fills all its tensors, before its first forward."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.weight: Any = UninitializedParameter()
        self.bias = nn.Parameter(torch.full((out,), 7.0))
        self.out = out
        self.handle = self.register_forward_pre_hook(self.init)

    def init(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.weight.materialize((self.out, args[0].shape[-1]))
        nn.init.kaiming_uniform_(self.weight)
        nn.init.zeros_(self.bias)
        self.handle.remove()
        del self.handle

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("nested", [True, False])
def test_a_layer_that_is_lazy_by_itself(nested: bool) -> None:
    lazy = OwnLazy(4)
    model = (nn.Sequential(nn.Linear(4, 4), lazy) if nested else lazy).eval()
    with watching(model) as g:
        model(batch())
        model(batch())
    assert g.violations == []


def test_once_it_has_its_shape_its_tensors_count() -> None:
    lazy = OwnLazy(4).eval()
    with watching() as g:
        lazy(batch())
        lazy.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("OwnLazy.bias",)


def test_what_is_beside_a_lazy_layer_counts_as_ever() -> None:
    class Drifting(Scale):
        def forward(self, x: Tensor) -> Tensor:
            self.w.data.add_(1)
            return super().forward(x)

    with watching() as g:
        nn.Sequential(Drifting(), OwnLazy(4)).eval()(batch())
    assert only(g, "state-mutated").subjects == ("Sequential.0.w",)


def test_a_lazy_layer_in_training_mode_is_counted_once() -> None:
    model = nn.LazyLinear(4)
    with watching() as g:
        model(batch())
    violation = only(g, "train-mode")
    assert len(violation.subjects) == 1
    assert "more" not in violation.finding


# --- registered for the duration of a forward


class Add(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.ones(4, 4))

    def forward(self, w: Tensor) -> Tensor:
        return w + self.delta


class ForItsDuration(nn.Module):
    """As adapters of single parameters do it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.add = nn.Linear(4, 4), Add()

    def forward(self, x: Tensor) -> Tensor:
        parametrize.register_parametrization(self.base, "weight", self.add)
        try:
            y: Tensor = self.base(x)
            return y
        finally:
            parametrize.remove_parametrizations(self.base, "weight", leave_parametrized=False)


def test_a_parametrization_for_the_duration_of_a_forward() -> None:
    with watching(strict=True) as g:
        ForItsDuration().eval()(batch())
    assert g.violations == []


def test_a_parametrization_that_was_left_in_training_mode() -> None:
    model = nn.Linear(4, 4).eval()
    parametrize.register_parametrization(model, "weight", Add().eval())
    with watching() as g:
        model(batch())
    assert only(g, "train-mode").subjects == ("Linear.parametrizations.weight (ParametrizationList)",)


def test_a_dropout_that_joins_in_training_mode() -> None:
    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.drop = nn.Dropout()
            y: Tensor = self.drop(self.lin(x))
            return y

    with watching() as g:
        Joins().eval()(batch())
    assert rules(g) == {"train-mode"}
