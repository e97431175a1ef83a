"""Whose draw it was: seen or unseen, in eval mode or not, torch's generator or the host's."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator

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
    """Runs its last part by `.forward()`, which nobody sees."""

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
    """Its method is found behind `nn.Module`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x)


# --- a part in training mode that ran unseen


@pytest.mark.parametrize("train", ["part", "*"])
def test_a_declared_part_that_ran_unseen_explains_the_draw(train: str) -> None:
    model = Block(DropPath()).eval()
    model.part.train()
    with watching(train=[train]) as g:
        model(batch())
    assert g.violations == []


def test_one_cause_is_one_violation() -> None:
    with watching() as g:
        Block(DropPath())(batch())
    assert rules(g) == {"train-mode"}


def test_a_draw_of_the_block_s_own_is_told_all_the_same() -> None:
    model = NoisyBlock(DropPath()).eval()
    model.part.train()
    with watching(train=["part"]) as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("NoisyBlock (NoisyBlock)",)


def test_a_part_that_was_seen_answers_for_itself() -> None:
    """Its draw does not explain that of a layer that ran unseen."""
    model = nn.Sequential(nn.Linear(4, 4), DropPath(), Block(UngatedPath())).eval()
    model[1].train()
    with watching(train=["1"]) as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("Sequential.2.part (UngatedPath)",)


def test_a_helper_to_which_nobody_tells_the_mode_is_not_gated() -> None:
    with watching() as g:
        nn.Sequential(nn.Linear(4, 4), UngatedPath()).eval()(batch())
    assert only(g, "random-forward").subjects == ("Sequential.1 (UngatedPath)",)


def test_what_was_drawn_before_a_module_began_is_not_put_down_to_it() -> None:
    """The recurrent layer is the next to ask: it has nothing that draws in eval mode."""

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


# --- who was in training mode did not draw in eval mode


def gated_hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    return (args[0] + torch.randn_like(args[0]),) if module.training else None


@pytest.mark.parametrize("declared", [True, False])
def test_a_hook_that_asks_its_module(declared: bool) -> None:
    container = nn.Sequential(nn.Identity())
    container.register_forward_pre_hook(gated_hook)
    model = nn.Sequential(nn.Linear(4, 4), container).eval()
    container.train()
    with watching(train=["*"] if declared else []) as g:
        model(batch())
    assert rules(g) == (set() if declared else {"train-mode"})


def test_a_hook_in_eval_mode_is_quiet() -> None:
    container = nn.Sequential(nn.Identity())
    container.register_forward_pre_hook(gated_hook)
    with watching() as g:
        nn.Sequential(nn.Linear(4, 4), container).eval()(batch())
    assert g.violations == []


# --- a mixin behind nn.Module


def test_a_mixin_behind_module_is_read() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MixedIn()).eval()
    model[1].train()
    with watching() as g:
        model(batch())
    assert only(g, "train-mode").subjects == ("Sequential.1 (MixedIn)",)


def test_a_mixin_that_draws_in_eval_mode_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MixedIn()).eval()
    model[1].always = True  # type: ignore[assignment]
    with watching() as g:
        model(batch())
    assert only(g, "random-forward").subjects == ("Sequential.1 (MixedIn)",)


def test_a_mixin_in_eval_mode_is_clean() -> None:
    with watching(strict=True) as g:
        nn.Sequential(nn.Linear(4, 4), MixedIn()).eval()(batch())
    assert g.violations == []


# --- the host's generators


class PythonNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + random.random())


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


class OwnNoise(nn.Module):
    """Look-alikes: generators of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.numpy.random()) * self.python.random()


@pytest.mark.parametrize("noise", [PythonNoise, NumpyNoise])
def test_a_host_s_draw_is_put_down_to_who_names_that_host(noise: type[nn.Module]) -> None:
    with watching(strict=True) as g:
        nn.Sequential(nn.Linear(4, 4), DropPath(), nn.Dropout(), noise()).eval()(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == (f"Sequential.3 ({noise.__name__})",)
    assert violation.cause is not None
    assert "rand" in violation.cause.source


def test_generators_of_their_own_are_no_fault() -> None:
    with watching(strict=True) as g:
        nn.Sequential(nn.Linear(4, 4), OwnNoise()).eval()(batch())
    assert g.violations == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "told"), [("numpy.random.rand()", True), ("numpy.random.default_rng(0).random()", False)]
)
def test_the_first_draw_of_a_process_is_seen(draw: str, told: bool) -> None:
    """NumPy imports its generator when it is first used."""
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
    assert done.stdout.split() == (["random-forward"] if told else [])
