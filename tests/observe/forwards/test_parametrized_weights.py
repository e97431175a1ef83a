"""Parametrized weights: reading one runs a module, but is not a forward of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.nets import only, rules, watching

X = torch.ones(1, 2, 5)


class Gate(nn.Module):
    """A parametrization of the user's own, which runs a submodule through a helper function."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(3, 3), nn.Dropout())

    def forward(self, weight: Tensor) -> Tensor:
        return run(self.scale, weight)


def run(module: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = module(x)
    return y


def weight_norm(layer: nn.Module) -> nn.Module:
    normed: nn.Module = parametrizations.weight_norm(layer)
    return normed


def gated(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Gate())
    return layer


class Vocoder(nn.Module):
    """A model whose methods read its parametrized weights outside of any forward."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.conv: Any = norm(nn.Conv1d(2, 2, 3))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x))
        return y

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).mean(-1)
        return y

    def init_weights(self) -> None:
        nn.init.normal_(self.conv.weight)
        nn.init.zeros_(self.head.weight)

    def describe(self) -> str:
        return f"norm {float(self.conv.weight.norm()):.2f}"

    def remove_norm(self) -> None:
        parametrize.remove_parametrizations(self.conv, "weight")


def load_other_weights(model: nn.Module) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


READS: dict[str, Callable[[Vocoder], object]] = {
    "initialized": Vocoder.init_weights,
    "described": Vocoder.describe,
    "removed": Vocoder.remove_norm,
    "removed by the test": lambda model: parametrize.remove_parametrizations(model.conv, "weight"),
    "read by the test": lambda model: model.conv.weight.isfinite().all(),
    "read by a method of a part": lambda model: repr(model.conv.weight),
}


@pytest.mark.parametrize("norm", [weight_norm, gated])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_reading_a_weight_is_not_a_forward(
    read: Callable[[Vocoder], object], norm: Callable[[nn.Module], nn.Module], strict: bool
) -> None:
    with watching(strict=strict) as g:
        model = Vocoder(norm)
        read(model)
        load_other_weights(model)
        model.eval()(X)
    assert g.violations == []
    assert [model.forwards for model in g.window.models] == [1]


@pytest.mark.parametrize("norm", [weight_norm, gated])
@torch.no_grad()
def test_without_a_forward_nothing_is_reported(norm: Callable[[nn.Module], nn.Module]) -> None:
    with watching() as g:
        model = Vocoder(norm)
        model.init_weights()
        load_other_weights(model)
    assert g.violations == []
    assert g.window.models == ()


@torch.no_grad()
def test_a_method_that_runs_the_model_is_a_forward() -> None:
    with watching() as g:
        Vocoder(weight_norm).features(X)
    assert only(g, "train-mode").model == "Vocoder"


@torch.no_grad()
def test_a_forward_after_a_read_is_observed() -> None:
    with watching() as g:
        model = Vocoder(gated)
        model.describe()
        model(X)
        model.eval()
        load_other_weights(model)
    assert rules(g) == {"train-mode", "state-mutated"}


@torch.no_grad()
def test_a_parametrization_in_training_mode_is_reported_in_a_forward() -> None:
    model = Vocoder(gated).eval()
    model.conv.parametrizations.train()
    with watching() as g:
        model(X)
    assert "Dropout" in only(g, "train-mode").subjects[0]


@torch.no_grad()
def test_a_read_that_changes_a_watched_model_is_reported() -> None:
    """In training mode, spectral norm updates its buffers whenever the weight is read."""
    layer: Any = parametrizations.spectral_norm(nn.Linear(4, 4))
    layer.parametrizations.weight[0]._u.copy_(torch.eye(4)[0])
    with watching(nn.Sequential(layer)) as g:
        assert layer.weight.isfinite().all()
    assert rules(g) == {"state-mutated"}


def test_a_read_that_raises_does_not_hide_the_next_forward() -> None:
    class Broken(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            raise ValueError("broken")

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Broken(), unsafe=True)
    with watching() as g, torch.no_grad():
        with pytest.raises(ValueError, match="broken"):
            layer.weight  # noqa: B018
        nn.Sequential(nn.Linear(4, 4), nn.Dropout())(torch.ones(1, 4))
    assert rules(g) == {"train-mode"}


class Kernel(nn.Module):
    """A model that computes a weight in a property, with a module that has no parameters, and checks what is set."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_scale = nn.Parameter(torch.zeros(5))
        self.transform = nn.Softplus()
        self.register_buffer("calls", torch.zeros(1))
        self.calls: Tensor
        self.head = nn.Linear(5, 2)

    @property
    def scale(self) -> Tensor:
        positive: Tensor = self.transform(self.raw_scale)
        return positive

    @scale.setter
    def scale(self, raw: Tensor) -> None:
        self._check_and_set(raw)

    def _check_and_set(self, raw: Tensor) -> None:
        if not (self.transform(raw) > 0).all():
            raise ValueError("out of bounds")
        self.raw_scale.data.copy_(raw)

    def encode(self, x: Tensor) -> Tensor:
        y: Tensor = self.transform(x * self.raw_scale)
        return y

    def count(self, x: Tensor) -> Tensor:
        y = self.encode(x)
        self.calls += 1
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x / self.scale)
        return y


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_weight_that_a_property_computes_is_not_a_forward(grad: bool, strict: bool) -> None:
    with watching(strict=strict) as g:
        model = Kernel().eval()
        with torch.set_grad_enabled(grad):
            model.scale = model.scale.detach() + 1
            model.scale = model.scale.detach() + 1
        with torch.no_grad():
            model(X)
    assert g.violations == []


def test_a_change_after_the_first_forward_is_still_reported() -> None:
    with watching() as g, torch.no_grad():
        model = Kernel().eval()
        model(X)
        model.scale = model.scale + 1
    assert only(g, "state-mutated").subjects == ("Kernel.raw_scale",)


def test_a_method_that_uses_weights_is_a_forward_although_it_runs_a_module_without_any() -> None:
    with watching() as g:
        Kernel().eval().encode(X)
    assert only(g, "grad-mode").model == "Kernel"


@torch.no_grad()
def test_what_such_a_method_writes_is_reported() -> None:
    with watching() as g:
        Kernel().eval().count(X)
    assert only(g, "state-mutated").subjects == ("Kernel.calls",)


@torch.no_grad()
def test_such_a_method_counts_as_a_forward() -> None:
    with watching(strict=True) as g:
        Kernel().eval().encode(X)
    assert g.violations == []
