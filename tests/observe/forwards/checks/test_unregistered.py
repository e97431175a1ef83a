"""Unregistered modules: their mode and state by default, and the strict rule about them."""

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
    """Holds blocks in a plain list, which `eval()` does not reach."""

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
    """Creates a layer in every forward."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.make()(self.head(x))
        return out


@torch.no_grad()
def test_a_training_block_in_a_plain_list_is_reported() -> None:
    with watching() as g:
        Listed(nn.ReLU(), nn.Dropout()).eval()(batch())
    violation = only(g, "train-mode")
    assert violation.subjects == ("Listed.blocks[1] (Dropout)",)
    assert "register it as a submodule" in violation.remedy
    assert violation.cause is not None
    assert violation.cause.source == "x = block(x)"


@torch.no_grad()
def test_a_submodule_of_a_block_in_a_plain_list_is_reported() -> None:
    with watching() as g:
        Listed(nn.Sequential(nn.ReLU(), nn.Dropout())).eval()(batch())
    assert only(g, "train-mode").subjects == ("Listed.blocks[0].1 (Dropout)",)


@torch.no_grad()
def test_eval_blocks_in_a_plain_list_are_clean() -> None:
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
def test_a_dropout_created_in_forward_is_reported() -> None:
    with watching() as g:
        Maker(nn.Dropout).eval()(batch())
    assert only(g, "train-mode").subjects == ("Maker.<Dropout> (Dropout)",)


@pytest.mark.parametrize("make", [nn.GELU, partial(nn.Softmax, -1), nn.Identity, lambda: nn.Dropout().eval()])
@torch.no_grad()
def test_a_harmless_layer_created_in_forward_is_clean(make: Callable[[], nn.Module]) -> None:
    with watching() as g:
        Maker(make).eval()(batch())
    assert not rules(g)


# --- the strict rule


@dataclass
class Tools:
    layer: nn.Module


class Hiding(nn.Module):
    """Holds modules where `eval()` does not find them."""

    def __init__(self, hidden: object, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden = hidden
        self.use = use
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.head(self.use(self.hidden, x))
        return h


class RegistersLate(nn.Module):
    """Registers a submodule in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Softmax(-1) if self.training else nn.Dropout().eval()
        return self.late(self.head(x))


def linear() -> nn.Module:
    return nn.Linear(4, 4).eval()


def in_closure(layer: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda _, x: layer(x)


UNREGISTERED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "list": (lambda: Hiding([linear()], lambda h, x: h[0](x)), "hidden[0] (Linear)"),
    "dict": (lambda: Hiding({"a": linear()}, lambda h, x: h["a"](x)), "hidden['a'] (Linear)"),
    "dataclass": (lambda: Hiding(Tools(linear()), lambda h, x: h.layer(x)), "(Linear)"),
    "closure": (lambda: Hiding(None, in_closure(linear())), "(Linear)"),
    "partial": (lambda: Hiding(partial(linear()), lambda h, x: h(x)), "(Linear)"),
    "created in forward": (lambda: Hiding(None, lambda _, x: nn.Dropout().eval()(x)), "(Dropout)"),
    "a batch norm": (lambda: Hiding([nn.BatchNorm1d(4).eval()], lambda h, x: h[0](x)), "hidden[0] (BatchNorm1d)"),
    "inside a stateless container": (
        lambda: Hiding([nn.Sequential(linear()).eval()], lambda h, x: h[0](x)),
        "hidden[0] (Sequential)",
    ),
}
HARMLESS: dict[str, Callable[[], nn.Module]] = {
    "stateless, created in forward": lambda: Hiding(None, lambda _, x: nn.GELU()(nn.Softmax(-1)(x))),
    "stateless, in a list": lambda: Hiding([nn.ReLU(), nn.Flatten()], lambda h, x: h[1](h[0](x))),
    "a loss": lambda: Hiding(None, lambda _, x: x * nn.MSELoss()(x, x * 2)),
    "a loss without weights": lambda: Hiding(None, lambda _, x: x * nn.CrossEntropyLoss()(x, x.softmax(-1))),
    "a norm without weights": lambda: Hiding(None, lambda _, x: nn.LayerNorm(4, elementwise_affine=False)(x)),
    "registered when it is created": RegistersLate,
    "in a ModuleList": lambda: Hiding(nn.ModuleList([linear()]), lambda h, x: h[0](x)),
    "in a ModuleDict": lambda: Hiding(nn.ModuleDict({"a": linear()}), lambda h, x: h["a"](x)),
}


@parametrize_cases(UNREGISTERED)
def test_an_unregistered_module_is_reported(case: tuple[Callable[[], nn.Module], str]) -> None:
    model, name = case[0]().eval(), case[1]
    with watching(strict=True) as g, torch.no_grad():
        model(batch())
        model(batch())
    violation = next(v for v in g.violations if v.rule == "unregistered-module")
    assert rules(g) == {"unregistered-module"}
    assert (len(violation.subjects), violation.count) == (1, 2)
    assert violation.subjects[0].endswith(name)
    assert violation.cause is not None


@parametrize_cases(HARMLESS)
def test_a_harmless_module_is_clean(case: Callable[[], nn.Module]) -> None:
    assert broken_rules(case()) == set()


def test_a_listed_module_that_is_registered_elsewhere_is_clean() -> None:
    encoder = nn.Linear(4, 4)
    assert broken_rules(nn.Sequential(encoder, Hiding([encoder], lambda h, x: h[0](x)))) == set()


def test_an_unregistered_module_in_training_mode_breaks_both_rules() -> None:
    assert broken_rules(Hiding([nn.Dropout()], lambda h, x: h[0](x))) == {"unregistered-module", "train-mode"}
