"""Bare `nn.Module` containers, lazy layers, and submodules that are registered during a forward."""

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


# --- bare nn.Module containers


def test_the_mode_of_a_bare_module_is_ignored() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), Scale()).eval())
    with watching() as g:
        graph(batch())
    assert g.violations == []


def test_the_mode_of_a_user_defined_parameter_container_counts() -> None:
    class Container(nn.Module):
        pass

    model = Scale().eval()
    model.extra = Container()
    model.extra.w = nn.Parameter(torch.ones(1))
    with watching() as g:
        model(batch())
    assert only(g, "train-mode").subjects == ("Scale.extra (Container)",)


# --- lazy without torch's mixin


class OwnLazy(nn.Module):
    """Initializes all its tensors in a hook before its first forward, when it knows their shape."""

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
def test_a_self_made_lazy_layer_may_initialize_itself(nested: bool) -> None:
    lazy = OwnLazy(4)
    model = (nn.Sequential(nn.Linear(4, 4), lazy) if nested else lazy).eval()
    with watching(model) as g:
        model(batch())
        model(batch())
    assert g.violations == []


def test_tensors_of_a_lazy_layer_are_watched_once_initialized() -> None:
    lazy = OwnLazy(4).eval()
    with watching() as g:
        lazy(batch())
        lazy.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("OwnLazy.bias",)


def test_other_layers_of_a_lazy_model_are_watched() -> None:
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


# --- registered during a forward


class Add(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.ones(4, 4))

    def forward(self, w: Tensor) -> Tensor:
        return w + self.delta


class ParametrizesInForward(nn.Module):
    """Registers a parametrization for the duration of a forward, as some adapters do."""

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


def test_a_parametrization_registered_during_a_forward_is_clean() -> None:
    with watching(strict=True) as g:
        ParametrizesInForward().eval()(batch())
    assert g.violations == []


def test_a_parametrization_in_training_mode_is_reported() -> None:
    model = nn.Linear(4, 4).eval()
    parametrize.register_parametrization(model, "weight", Add().eval())
    with watching() as g:
        model(batch())
    assert only(g, "train-mode").subjects == ("Linear.parametrizations.weight (ParametrizationList)",)


def test_a_dropout_registered_during_a_forward_is_reported() -> None:
    class RegistersDropout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.drop = nn.Dropout()
            y: Tensor = self.drop(self.lin(x))
            return y

    with watching() as g:
        RegistersDropout().eval()(batch())
    assert rules(g) == {"train-mode"}
