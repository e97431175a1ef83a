"""Inputs that a forward writes into: those that somebody still holds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode import guard
from tests.nets import Net, batch, only, rules, watching
from tests.strict import Transform, broken_rules, parametrize_cases


def looped() -> list[Any]:
    """A list that contains itself."""
    items: list[Any] = [batch()]
    items.append(items)
    return items


WRITES: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]], str]] = {
    "an argument": (lambda x: x.add_(1), lambda: (batch(),), "argument 0"),
    "the second": (lambda x, y: y.add_(x), lambda: (batch(), batch()), "argument 1"),
    "by index": (lambda x: x.__setitem__(x < 9, 7.0), lambda: (batch(),), "argument 0"),
    "a view": (lambda x: x.flatten().relu_(), lambda: (-batch().abs() - 1,), "argument 0"),
    "its detached data": (lambda x: x.data.zero_(), lambda: (torch.ones(2, 4),), "argument 0"),
    "by NumPy": (lambda x: x.numpy().fill(3), lambda: (torch.ones(2, 4),), "argument 0"),
    "in a list": (lambda xs: xs[1].add_(1), lambda: ([batch(), batch()],), "argument 0[1]"),
    "in a tuple": (lambda xs: xs[0].add_(1), lambda: ((batch(),),), "argument 0[0]"),
    "in a dict": (lambda d: d["x"].add_(1), lambda: ({"x": batch()},), "argument 0['x']"),
    "deep in": (lambda d: d["a"][0].add_(1), lambda: ({"a": [batch()]},), "argument 0['a'][0]"),
    "in a list that contains itself": (lambda xs: xs[0].add_(1), lambda: (looped(),), "argument 0[0]"),
}


@parametrize_cases(WRITES)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_input_written_into(case: Any, grad: Callable[[], Any]) -> None:
    do, inputs, name = case
    given = inputs()
    with watching(strict=True) as g, grad():
        Transform(do)(*given)
    violation = only(g, "input-mutated")
    assert violation.details["arguments"] == [name]
    assert violation.at is not None
    assert "Transform(do)(*given)" in violation.at.source


def test_a_keyword_argument_written_into() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    with watching(strict=True) as g:
        Transform(lambda *, mask: mask.logical_not_())(mask=mask)
    assert only(g, "input-mutated").details["arguments"] == ["argument 'mask'"]


def test_a_layer_that_works_in_place_on_the_input() -> None:
    layers = nn.ReLU(inplace=True), nn.Linear(4, 2)
    assert broken_rules(nn.Sequential(*layers), -torch.ones(2, 4)) == {"input-mutated"}
    assert broken_rules(nn.Sequential(nn.Linear(4, 4), *layers), -torch.ones(2, 4)) == set()


Call = Callable[[nn.Module, torch.Tensor], object]

TEMPORARIES: dict[str, Call] = {
    "a clone": lambda model, x: model(x.clone()),
    "an expression": lambda model, x: model(-x),
    "by name": lambda model, x: model(x=x + 1),
    "in a list": lambda model, x: model([x.clone()]),
    "in a dict": lambda model, x: model({"x": [x.clone()]}),
    "in a list, by a star": lambda model, x: model(*[x.clone()]),
    "partial": lambda model, x: functools.partial(model, x.clone())(),
    "mapped": lambda model, x: list(map(model, [x.clone()])),
    "functional": lambda model, x: torch.func.functional_call(model, {}, (x.clone(),)),
    "inside another": lambda model, x: nn.Sequential(model)(x.clone()),
    "again and again": lambda model, x: [model(x.clone()) for _ in range(3)],
}


class Box:
    kept: torch.Tensor


def boxed(x: torch.Tensor) -> torch.Tensor:
    Box.kept = x.clone()
    return Box.kept


HELD: dict[str, Call] = {
    "by a variable": lambda model, x: model(x),
    "by name": lambda model, x: model(x=x),
    "in a list": lambda model, x: model([x]),
    "functional": lambda model, x: torch.func.functional_call(model, {}, (x,)),
    "a view": lambda model, x: model(x[:1]),
    "its detached self": lambda model, x: model(x.detach()),
    "in an object": lambda model, x: model(boxed(x)),
    "by a walrus": lambda model, x: (model(kept := x.clone()), kept),
}


class Overwrites(nn.Module):
    def forward(self, x: Any) -> Any:
        inner = x
        while not isinstance(inner, torch.Tensor):
            inner = next(iter(inner.values() if isinstance(inner, dict) else inner))
        inner.fill_(7)
        return {"same": x}


@parametrize_cases(TEMPORARIES)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_a_temporary_may_be_used_up(case: Call, grad: Callable[[], Any]) -> None:
    x = batch()
    with guard(strict=True), grad():
        case(Overwrites(), x)


@parametrize_cases(HELD)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_what_somebody_holds_may_not(case: Call, grad: Callable[[], Any]) -> None:
    x = batch()
    with watching(strict=True) as g, grad():
        case(Overwrites(), x)
    assert "input-mutated" in rules(g)


class Cache:
    """What generation hands along: an object of its own kind."""

    def __init__(self) -> None:
        self.keys = torch.zeros(4)


KEEPS: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]]]] = {
    "a clone": (lambda x: x.clone().add_(1), lambda: (batch(),)),
    "the same values": (lambda x: x.mul_(1), lambda: (torch.ones(2, 4),)),
    "a cache": (lambda cache: cache.keys.add_(1), lambda: (Cache(),)),
    "a cache in a list": (lambda caches: caches[0].keys.add_(1), lambda: ([Cache()],)),
    "the list itself": (lambda xs: xs.append(0), lambda: ([batch()],)),
    "NaN": (lambda x: x + 1, lambda: (torch.full((2, 4), float("nan")),)),
    "expanded": (lambda x: x + 1, lambda: (torch.ones(1, 4).expand(8, 4),)),
    "nothing": (lambda: None, lambda: ()),
}


@parametrize_cases(KEEPS)
def test_input_left_alone(case: Any) -> None:
    do, inputs = case
    with guard(strict=True), torch.no_grad():
        Transform(do)(*inputs())


@pytest.mark.parametrize("strict", [False, True])
def test_a_list_that_contains_itself(strict: bool) -> None:
    """Autograd is on over a frozen model: whether an input requires grad is looked for in the list."""
    model = nn.Sequential(Transform(lambda xs: xs[0]), nn.Linear(4, 2)).eval().requires_grad_(False)
    with guard(strict=strict, allow="grad-mode"):
        model(looped())


def test_what_the_caller_writes_is_the_callers() -> None:
    x, model = batch(), Net().eval()
    with guard(strict=True), torch.no_grad():
        model(x)
        x.add_(1)
        model(x)
