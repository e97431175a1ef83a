"""Modules that no model knows of: in training mode by default, and as such in strict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nets import batch, only, rules, watching
from tests.strict import broken_rules, parametrize_cases


class Listed(nn.Module):
    """Blocks in a plain list, which `eval()` cannot reach."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.blocks = [*blocks]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


class Maker(nn.Module):
    """Makes a layer in every forward."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.make()(self.head(x))
        return out


@torch.no_grad()
def test_a_block_in_a_plain_list() -> None:
    with watching() as g:
        Listed(nn.ReLU(), nn.Dropout()).eval()(batch())
    violation = only(g, "train-mode")
    assert violation.subjects == ("Listed.blocks[1] (Dropout)",)
    assert "register it as a submodule" in violation.remedy
    assert violation.cause is not None
    assert violation.cause.source == "x = block(x)"


@torch.no_grad()
def test_a_part_of_a_block_in_a_plain_list() -> None:
    with watching() as g:
        Listed(nn.Sequential(nn.ReLU(), nn.Dropout())).eval()(batch())
    assert only(g, "train-mode").subjects == ("Listed.blocks[0].1 (Dropout)",)


@torch.no_grad()
def test_blocks_in_a_plain_list_that_were_not_forgotten() -> None:
    with watching() as g:
        Listed(nn.GELU(), nn.Dropout().eval(), nn.Linear(4, 4).eval()).eval()(batch())
    assert not rules(g)


@torch.no_grad()
def test_state_in_a_plain_list_is_watched() -> None:
    model = Listed(nn.Linear(4, 4).eval()).eval()
    with watching() as g:
        model(batch())
        model.blocks[0].get_parameter("bias").add_(1)
    assert only(g, "state-mutated").subjects == ("Listed.blocks[0].bias",)


@torch.no_grad()
def test_a_layer_made_in_forward() -> None:
    with watching() as g:
        Maker(nn.Dropout).eval()(batch())
    assert only(g, "train-mode").subjects == ("Maker.<Dropout> (Dropout)",)


@pytest.mark.parametrize("make", [nn.GELU, partial(nn.Softmax, -1), nn.Identity, lambda: nn.Dropout().eval()])
@torch.no_grad()
def test_a_layer_made_in_forward_that_does_no_harm(make: Callable[[], nn.Module]) -> None:
    with watching() as g:
        Maker(make).eval()(batch())
    assert not rules(g)


# --- in strict


@dataclass
class Tools:
    layer: nn.Module


class Hiding(nn.Module):
    """Keeps modules where `eval()` does not find them."""

    def __init__(self, hidden: object, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden = hidden
        self.use = use
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.head(self.use(self.hidden, x))
        return h


class RegistersLate(nn.Module):
    """Makes a part of itself in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Softmax(-1) if self.training else nn.Dropout().eval()
        return self.late(self.head(x))


def linear() -> nn.Module:
    return nn.Linear(4, 4).eval()


def of_closure(layer: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda _, x: layer(x)


HIDDEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "list": (lambda: Hiding([linear()], lambda h, x: h[0](x)), "hidden[0] (Linear)"),
    "dict": (lambda: Hiding({"a": linear()}, lambda h, x: h["a"](x)), "hidden['a'] (Linear)"),
    "dataclass": (lambda: Hiding(Tools(linear()), lambda h, x: h.layer(x)), "(Linear)"),
    "closure": (lambda: Hiding(None, of_closure(linear())), "(Linear)"),
    "partial": (lambda: Hiding(partial(linear()), lambda h, x: h(x)), "(Linear)"),
    "made in forward": (lambda: Hiding(None, lambda _, x: nn.Dropout().eval()(x)), "(Dropout)"),
    "a batch norm": (lambda: Hiding([nn.BatchNorm1d(4).eval()], lambda h, x: h[0](x)), "hidden[0] (BatchNorm1d)"),
    "beneath a stateless one": (
        lambda: Hiding([nn.Sequential(linear()).eval()], lambda h, x: h[0](x)),
        "hidden[0] (Sequential)",
    ),
}
REACHED: dict[str, Callable[[], nn.Module]] = {
    "stateless, made in forward": lambda: Hiding(None, lambda _, x: nn.GELU()(nn.Softmax(-1)(x))),
    "stateless, in a list": lambda: Hiding([nn.ReLU(), nn.Flatten()], lambda h, x: h[1](h[0](x))),
    "a loss": lambda: Hiding(None, lambda _, x: x * nn.MSELoss()(x, x * 2)),
    "a loss without weights": lambda: Hiding(None, lambda _, x: x * nn.CrossEntropyLoss()(x, x.softmax(-1))),
    "a norm without weights": lambda: Hiding(None, lambda _, x: nn.LayerNorm(4, elementwise_affine=False)(x)),
    "registered as it is made": RegistersLate,
    "in a ModuleList": lambda: Hiding(nn.ModuleList([linear()]), lambda h, x: h[0](x)),
    "in a ModuleDict": lambda: Hiding(nn.ModuleDict({"a": linear()}), lambda h, x: h["a"](x)),
}


@parametrize_cases(HIDDEN)
def test_hidden(case: tuple[Callable[[], nn.Module], str]) -> None:
    model, name = case[0]().eval(), case[1]
    with watching(strict=True) as g, torch.no_grad():
        model(batch())
        model(batch())
    violation = next(v for v in g.violations if v.rule == "unregistered-module")
    assert rules(g) == {"unregistered-module"}
    assert (len(violation.subjects), violation.count) == (1, 2)
    assert violation.subjects[0].endswith(name)
    assert violation.cause is not None


@parametrize_cases(REACHED)
def test_reached(case: Callable[[], nn.Module]) -> None:
    assert broken_rules(case()) == set()


def test_a_list_of_what_is_registered_elsewhere() -> None:
    encoder = nn.Linear(4, 4)
    assert broken_rules(nn.Sequential(encoder, Hiding([encoder], lambda h, x: h[0](x)))) == set()


def test_hidden_and_in_training_mode_breaks_both() -> None:
    assert broken_rules(Hiding([nn.Dropout()], lambda h, x: h[0](x))) == {"unregistered-module", "train-mode"}
