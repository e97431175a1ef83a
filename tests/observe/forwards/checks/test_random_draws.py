"""The module that a random draw is blamed on, for generators of torch, Python and NumPy."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import batch, only, rules, watching


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    if p == 0 or not training:
        return x
    return x * x.new_empty(x.shape[0], 1).bernoulli_(1 - p)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, 0.3, self.training)


class UngatedPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, 0.3, True)


class Block(nn.Module):
    """Runs a submodule as `module.forward(x)`, which is not observed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part.forward(self.lin(x))
        return y


class NoisyBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.1)


class Mixin:
    always = False
    training: bool

    def noise(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training or self.always else x


class MixedIn(nn.Module, Mixin):
    """Inherits its method from a class after `nn.Module` in the MRO."""

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x)


# --- a submodule in training mode whose forward is not observed


@pytest.mark.parametrize("train", ["part", "*"])
def test_an_exempted_submodule_explains_the_draw(train: str) -> None:
    model = Block(DropPath()).eval()
    model.part.train()
    with watching(train=[train]) as g:
        model(batch())
    assert g.violations == []


def test_training_mode_explains_the_draw() -> None:
    with watching() as g:
        Block(DropPath())(batch())
    assert rules(g) == {"train-mode"}


def test_a_draw_of_the_block_itself_is_reported() -> None:
    model = NoisyBlock(DropPath()).eval()
    model.part.train()
    with watching(train=["part"]) as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("NoisyBlock (NoisyBlock)",)


def test_an_observed_module_does_not_explain_the_draws_of_others() -> None:
    """Its draw does not explain that of a layer whose forward was not observed."""
    model = nn.Sequential(nn.Linear(4, 4), DropPath(), Block(UngatedPath())).eval()
    model[1].train()
    with watching(train=["1"]) as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("Sequential.2.part (UngatedPath)",)


def test_a_helper_function_that_ignores_the_mode_is_reported() -> None:
    with watching() as g:
        nn.Sequential(nn.Linear(4, 4), UngatedPath()).eval()(batch())
    assert only(g, "random-forward").subjects == ("Sequential.1 (UngatedPath)",)


def test_a_draw_is_not_blamed_on_the_module_that_starts_next() -> None:
    """The generator is read when the recurrent layer starts, which cannot draw in eval mode."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, num_layers=2, dropout=0.2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.rnn(x)[0]
            return y

    model = nn.Sequential(nn.Linear(4, 4), Block(UngatedPath()), Recurrent()).eval()
    with watching() as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("Sequential.1.part (UngatedPath)",)


# --- hooks that draw in training mode only


def gated_hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    return (args[0] + torch.randn_like(args[0]),) if module.training else None


@pytest.mark.parametrize("exempted", [True, False])
def test_a_hook_that_draws_in_training_mode_is_train_mode(exempted: bool) -> None:
    container = nn.Sequential(nn.Identity())
    container.register_forward_pre_hook(gated_hook)
    model = nn.Sequential(nn.Linear(4, 4), container).eval()
    container.train()
    with watching(train=["*"] if exempted else []) as g:
        model(batch())
    assert rules(g) == (set() if exempted else {"train-mode"})


def test_a_hook_of_a_module_in_eval_mode_is_clean() -> None:
    container = nn.Sequential(nn.Identity())
    container.register_forward_pre_hook(gated_hook)
    with watching() as g:
        nn.Sequential(nn.Linear(4, 4), container).eval()(batch())
    assert g.violations == []


# --- a mixin after nn.Module in the MRO


def test_a_mixin_in_training_mode_is_train_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MixedIn()).eval()
    model[1].train()
    with watching() as g:
        model(batch())
    assert only(g, "train-mode").subjects == ("Sequential.1 (MixedIn)",)


def test_a_mixin_that_draws_in_eval_mode_is_reported() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MixedIn()).eval()
    model[1].always = True  # type: ignore[assignment]
    with watching() as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("Sequential.1 (MixedIn)",)


def test_a_mixin_in_eval_mode_is_clean() -> None:
    with watching(strict=True) as g:
        nn.Sequential(nn.Linear(4, 4), MixedIn()).eval()(batch())
    assert g.violations == []


# --- generators of Python and NumPy


class PythonNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + random.random())


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


class OwnNoise(nn.Module):
    """Draws from generators of its own, which is harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.numpy.random()) * self.python.random()


@pytest.mark.parametrize("noise", [PythonNoise, NumpyNoise])
def test_a_draw_is_blamed_on_the_module_whose_code_uses_that_library(noise: type[nn.Module]) -> None:
    with watching(strict=True) as g:
        nn.Sequential(nn.Linear(4, 4), DropPath(), nn.Dropout(), noise()).eval()(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == (f"Sequential.3 ({noise.__name__})",)
    assert violation.cause is not None
    assert "rand" in violation.cause.source


def test_private_generators_are_clean() -> None:
    with watching(strict=True) as g:
        nn.Sequential(nn.Linear(4, 4), OwnNoise()).eval()(batch())
    assert g.violations == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "is_reported"), [("numpy.random.rand()", True), ("numpy.random.default_rng(0).random()", False)]
)
def test_the_first_numpy_draw_of_a_process_is_reported(draw: str, is_reported: bool) -> None:
    """NumPy imports `numpy.random` when it is first used."""
    script = f"""
import sys, numpy, torch
from torch import nn
from pytest_evalmode import HygieneError, guard
assert "numpy.random" not in sys.modules

class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x) * float({draw})

try:
    with guard(strict=True), torch.no_grad():
        Noise().eval()(torch.ones(2, 4))
except HygieneError as error:
    print(*(violation.rule for violation in error.violations))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["random-forward"] if is_reported else [])


class DrawsThroughATable(nn.Module):
    """Its code does not show that it draws."""

    def __init__(self, noise: Callable[[Tensor], Tensor] = torch.rand_like) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.functions = {"noise": noise}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.functions["noise"](x)
        return out


@pytest.mark.parametrize(("training", "rule"), [(True, "train-mode"), (False, "random-forward")])
def test_a_draw_that_the_code_hides_is_reported_in_either_mode(training: bool, rule: str) -> None:
    net = DrawsThroughATable().eval()
    net.training = training
    with torch.no_grad(), watching() as window:
        for _ in range(3):
            net(torch.ones(1, 2))
        (violation,) = window.violations
    assert (violation.rule, violation.count) == (rule, 3)
    assert violation.subjects == ("DrawsThroughATable (DrawsThroughATable)",)


def test_a_training_mode_whose_effect_is_not_seen_is_not_reported() -> None:
    net = DrawsThroughATable(torch.zeros_like).eval()
    net.training = True
    with torch.no_grad(), watching() as window:
        net(torch.ones(1, 2))
    assert rules(window) == set()
