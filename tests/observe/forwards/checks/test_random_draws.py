"""The module that a random draw is blamed on, for generators of torch, Python and NumPy."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

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


# --- a module without a forward, whose method the model calls


def shaken(grid: Tensor) -> Tensor:
    return grid + torch.empty(1).uniform_(-1, 1)


class Grid(nn.Module):
    def embed(self) -> Tensor:
        grid = torch.ones(4)
        return shaken(grid) if self.training else grid


class UngatedGrid(nn.Module):
    def embed(self) -> Tensor:
        return shaken(torch.ones(4))


class Embedded(nn.Module):
    def __init__(self, grid: Any) -> None:
        super().__init__()
        self.grid, self.drop, self.lin = grid, nn.Dropout(0.1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.lin(x + self.grid.embed()))
        return y


def test_a_method_that_draws_in_training_mode_is_train_mode() -> None:
    with torch.no_grad(), watching() as g:
        Embedded(Grid()).train()(batch())
    assert "Embedded.grid (Grid)" in only(g, "train-mode").subjects


def test_a_method_whose_helper_ignores_the_mode_is_reported() -> None:
    with torch.no_grad(), watching() as g:
        Embedded(UngatedGrid()).eval()(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == ("Embedded.grid (UngatedGrid)",)
    assert violation.cause is not None
    assert "uniform_" in violation.cause.source


def test_a_method_whose_helper_draws_in_training_mode_only_is_clean() -> None:
    with torch.no_grad(), watching() as g:
        Embedded(Grid()).eval()(batch())
    assert not g.violations


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


# --- the module whose own code drew, and only code that can draw in this mode


class Attention(nn.Module):
    """Draws nothing while `p` is 0."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.p = nn.Linear(4, 4), p

    def forward(self, x: Tensor) -> Tensor:
        q = self.qkv(x).unsqueeze(0)
        y: Tensor = F.scaled_dot_product_attention(q, q, q, dropout_p=self.p)[0]
        return y


class Draws(nn.Module):
    """Draws in a method of its own, before an attention that draws nothing."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.attention = nn.Sequential(*(after or [Attention()]))
        self.noise: object = torch.distributions.Normal(0.0, 1.0)

    def disturb(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.disturb(x))
        return y


class DrawsByAnObject(Draws):
    def disturb(self, x: Tensor) -> Tensor:
        noise: Tensor = getattr(self.noise, "sam" + "ple")(x.shape)
        return x + noise


class Vae(nn.Module):
    """Draws itself, between its encoder and its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Attention(), nn.Dropout())

    def forward(self, x: Tensor) -> Tensor:
        mean = self.encoder(x)
        y: Tensor = self.decoder(mean + torch.randn_like(mean))
        return y


class Given(nn.Module):
    """Draws from a generator that may be None."""

    def __init__(self, own: torch.Generator | None = None) -> None:
        super().__init__()
        self.own = own
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.own is not None:
            return x + torch.randn(x.shape, generator=self.own)
        y: Tensor = self.body(x) + torch.randn(x.shape, generator=generator)
        return y


class GivenNone(nn.Module):
    """Draws from the global generator, as its own is None."""

    own: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.own)


class Part(nn.Module):
    """Has a method that draws, and a forward that does not."""

    def disturb(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    def forward(self, x: Tensor) -> Tensor:
        return x


class CallsAMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.part, self.last = nn.Linear(4, 4), Part(), Attention()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.part.disturb(self.lin(x)))
        return y


class Loop(nn.Module):
    """Its code does not show whose forward it calls."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.forward(x)
        return x


class Builds(nn.Module):
    """Creates a layer in its first forward; its dropout is off in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.is_built = False

    def build(self) -> None:
        if not self.is_built:
            self.lin = nn.Linear(4, 4)
            self.is_built = True

    def forward(self, x: Tensor) -> Tensor:
        self.build()
        y: Tensor = self.lin(F.dropout(x, 0.1, training=self.training))
        return y


class GatedBySettings(Draws):
    """Its own calls cannot draw: what draws is hidden."""

    rate = 0.0

    def disturb(self, x: Tensor) -> Tensor:
        x = F.dropout(F.dropout(x, 0.1, self.training), self.rate)
        if self.training and self.rate > 0:
            x = x + torch.randn_like(x)
        if not self.training:
            x += getattr(torch, "rand" + "n")(x.shape)
            return x
        return torch.bernoulli(x)


STRICT = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


@STRICT
@pytest.mark.parametrize("is_part", [False, True], ids=["alone", "in a model"])
@pytest.mark.parametrize(
    ("make", "path", "source"),
    [
        (lambda: Draws(), "", "torch.randn_like(x)"),
        (lambda: Draws(nn.Sequential(Attention())), "", "torch.randn_like(x)"),
        (lambda: Vae(), "", "torch.randn_like(mean)"),
        (lambda: Given(), "", "generator=generator"),
        (lambda: Block(Given()), ".part", "generator=generator"),
        (lambda: Block(GivenNone()), ".part", "generator=self.own"),
        (lambda: CallsAMethod(), ".part", "torch.randn_like(x)"),
        (lambda: Loop(nn.Linear(4, 4), Attention(), DropPath(), UngatedPath()), ".parts.3", "bernoulli_"),
        (lambda: Builds(), "", "nn.Linear(4, 4)"),
        # Look-alikes: an attention that draws is blamed itself.
        (lambda: nn.Sequential(nn.Linear(4, 4), Attention(0.1)), ".1", "scaled_dot_product_attention"),
        (lambda: Loop(nn.Linear(4, 4), Attention(0.1)), ".parts.1", "scaled_dot_product_attention"),
    ],
)
def test_the_module_whose_code_drew_is_blamed(
    make: Callable[[], nn.Module], path: str, source: str, is_part: bool, strict: bool
) -> None:
    model = make()
    if is_part:
        model, path = nn.Sequential(nn.Linear(4, 4), model, Attention(), nn.Dropout()), f".1{path}"
    with watching(strict=strict) as g:
        model.eval()(batch())
    (violation,) = (each for each in g.violations if each.rule == "random-forward")
    assert violation.subjects[0].partition(" ")[0] == f"{type(model).__name__}{path}"
    assert violation.cause is not None
    assert source in violation.cause.source


@STRICT
@pytest.mark.parametrize("kind", [DrawsByAnObject, GatedBySettings])
def test_a_draw_that_the_code_hides_is_blamed_on_no_other_module(kind: type[Draws], strict: bool) -> None:
    with watching(strict=strict) as g:
        kind().eval()(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == (f"{kind.__name__} ({kind.__name__})",)
    assert "dropout" not in violation.finding + str(violation.cause)
    assert "attention" not in violation.finding


@STRICT
def test_a_generator_of_the_module_is_clean(strict: bool) -> None:
    with watching(strict=strict) as g:
        Given(torch.Generator()).eval()(batch())
        Given().eval()(batch(), torch.Generator())
    assert g.violations == []


# --- a module that draws whatever its mode


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class NoisyLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + torch.randn(4)


class Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.noise = nn.Linear(4, 4), Noise()

    def distort(self, x: Tensor) -> Tensor:
        y: Tensor = self.noise(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(self.distort(x))
        return y


@STRICT
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_module_that_always_draws_is_not_fixed_by_eval(training: bool, strict: bool) -> None:
    with watching(strict=strict) as g:
        Diffusion().train(training).distort(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == ("Diffusion.noise (Noise)",)
    assert "randn_like" in violation.finding
    assert ("eval mode" in violation.finding) is not training
    assert "eval()" not in violation.remedy


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_layer_with_weights_that_always_draws_is_reported_in_either_mode(training: bool) -> None:
    """Its training mode is reported too, as that of any layer with weights."""
    with watching() as g:
        nn.Sequential(NoisyLinear(4, 4)).train(training)(batch())
    assert rules(g) == ({"train-mode", "random-forward"} if training else {"random-forward"})


def test_a_module_without_weights_that_draws_is_a_transform() -> None:
    with watching() as g:
        Noise()(batch())
    assert g.violations == []
    with watching(strict=True) as g:
        Noise()(batch())
    assert only(g, "random-forward").subjects == ("Noise (Noise)",)


def test_a_module_that_always_draws_may_be_exempted_with_its_mode() -> None:
    with watching(train=["noise"], strict=True) as g:
        model = Diffusion().eval()
        model.noise.train()
        model(batch())
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
    ("draw", "is_reported"),
    [
        ("numpy.random.rand()", True),
        pytest.param("numpy.random.default_rng(0).random()", False, marks=pytest.mark.repetition),
    ],
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
