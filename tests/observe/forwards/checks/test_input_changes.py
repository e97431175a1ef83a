"""Inputs that a forward changes in place: reported if something else still references them."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode import guard
from tests.nets import Net, batch, only, rules, watching
from tests.repetitions import mark_repetitions
from tests.strict import Transform, broken_rules, parametrize_cases

both_grads = pytest.mark.parametrize("grad", mark_repetitions([torch.no_grad, torch.inference_mode], [torch.no_grad]))


@pytest.fixture(autouse=True, scope="module")
def _unfrozen() -> Iterator[None]:
    """The objects that refer to a tensor are found only if the garbage collector tracks them."""
    gc.unfreeze()
    yield
    gc.freeze()


def looped() -> list[Any]:
    """A list that contains itself."""
    items: list[Any] = [batch()]
    items.append(items)
    return items


WRITES: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]], str]] = {
    "an argument": (lambda x: x.add_(1), lambda: (batch(),), "argument 0"),
    "the second": (lambda x, y: y.add_(x), lambda: (batch(), batch()), "argument 1"),
    "an item": (lambda x: x.__setitem__(x < 9, 7.0), lambda: (batch(),), "argument 0"),
    "a view": (lambda x: x.flatten().relu_(), lambda: (-batch().abs() - 1,), "argument 0"),
    "its detached data": (lambda x: x.data.zero_(), lambda: (torch.ones(2, 4),), "argument 0"),
    "through NumPy": (lambda x: x.numpy().fill(3), lambda: (torch.ones(2, 4),), "argument 0"),
    "in a list": (lambda xs: xs[1].add_(1), lambda: ([batch(), batch()],), "argument 0[1]"),
    "in a tuple": (lambda xs: xs[0].add_(1), lambda: ((batch(),),), "argument 0[0]"),
    "in a dict": (lambda d: d["x"].add_(1), lambda: ({"x": batch()},), "argument 0['x']"),
    "deeply nested": (lambda d: d["a"][0].add_(1), lambda: ({"a": [batch()]},), "argument 0['a'][0]"),
    "in a list that contains itself": (lambda xs: xs[0].add_(1), lambda: (looped(),), "argument 0[0]"),
}


@parametrize_cases(WRITES)
@both_grads
def test_a_changed_input_is_reported(case: Any, grad: Callable[[], Any]) -> None:
    write, make_inputs, name = case
    inputs = make_inputs()
    with watching(strict=True) as g, grad():
        Transform(write)(*inputs)
    violation = only(g, "input-mutated")
    assert violation.details["arguments"] == [name]
    assert violation.at is not None
    assert "Transform(write)(*inputs)" in violation.at.source


def test_a_changed_keyword_argument_is_reported() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    with watching(strict=True) as g:
        Transform(lambda *, mask: mask.logical_not_())(mask=mask)
    assert only(g, "input-mutated").details["arguments"] == ["argument 'mask'"]


def test_an_inplace_layer_is_reported_only_if_it_gets_the_input() -> None:
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
    tensor: torch.Tensor


def boxed(x: torch.Tensor) -> torch.Tensor:
    Box.tensor = x.clone()
    return Box.tensor


REFERENCED: dict[str, Call] = {
    "by a variable": lambda model, x: model(x),
    "by name": lambda model, x: model(x=x),
    "in a list": lambda model, x: model([x]),
    "functional": lambda model, x: torch.func.functional_call(model, {}, (x,)),
    "a view": lambda model, x: model(x[:1]),
    "a detached tensor": lambda model, x: model(x.detach()),
    "in an object": lambda model, x: model(boxed(x)),
    "by a walrus": lambda model, x: (model(y := x.clone()), y),
}


class Overwrites(nn.Module):
    def forward(self, x: Any) -> Any:
        inner = x
        while not isinstance(inner, torch.Tensor):
            inner = next(iter(inner.values() if isinstance(inner, dict) else inner))
        inner.fill_(7)
        return {"same": x}


@parametrize_cases(TEMPORARIES)
@both_grads
def test_a_temporary_may_be_changed(case: Call, grad: Callable[[], Any]) -> None:
    x = batch()
    with guard(strict=True), grad():
        case(Overwrites(), x)


def test_a_temporary_in_an_assert_may_be_changed() -> None:
    """Pytest rewrites an `assert` so that hidden variables hold its intermediate values."""
    x, model = batch(), Overwrites()
    with guard(strict=True), torch.no_grad():
        assert model(x.clone()).keys() == model(-x).keys()


def test_a_referenced_input_in_an_assert_may_not_be_changed() -> None:
    x, model = batch(), Overwrites()
    with watching(strict=True) as g, torch.no_grad():
        assert model(x).keys() == {"same"}
    assert "input-mutated" in rules(g)


@parametrize_cases(REFERENCED)
@both_grads
def test_a_referenced_input_may_not_be_changed(case: Call, grad: Callable[[], Any]) -> None:
    x = batch()
    with watching(strict=True) as g, grad():
        case(Overwrites(), x)
    assert "input-mutated" in rules(g)


class Cache:
    """A cache of keys, as language models pass it from step to step."""

    def __init__(self) -> None:
        self.keys = torch.zeros(4)


UNCHANGED: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]]]] = {
    "a clone": (lambda x: x.clone().add_(1), lambda: (batch(),)),
    "the same values": (lambda x: x.mul_(1), lambda: (torch.ones(2, 4),)),
    "a cache": (lambda cache: cache.keys.add_(1), lambda: (Cache(),)),
    "a cache in a list": (lambda caches: caches[0].keys.add_(1), lambda: ([Cache()],)),
    "the list itself": (lambda xs: xs.append(0), lambda: ([batch()],)),
    "NaN": (lambda x: x + 1, lambda: (torch.full((2, 4), float("nan")),)),
    "expanded": (lambda x: x + 1, lambda: (torch.ones(1, 4).expand(8, 4),)),
    "nothing": (lambda: None, lambda: ()),
}


@parametrize_cases(UNCHANGED)
def test_unchanged_inputs_are_clean(case: Any) -> None:
    run, make_inputs = case
    with guard(strict=True), torch.no_grad():
        Transform(run)(*make_inputs())


@pytest.mark.parametrize("strict", [False, True])
def test_a_list_that_contains_itself_is_accepted(strict: bool) -> None:
    """With grad mode on and a frozen model, the list is searched for tensors that require grad."""
    model = nn.Sequential(Transform(lambda xs: xs[0]), nn.Linear(4, 2)).eval().requires_grad_(False)
    with guard(strict=strict, allow="grad-mode"):
        model(looped())


def test_an_input_changed_by_the_caller_is_clean() -> None:
    x, model = batch(), Net().eval()
    with guard(strict=True), torch.no_grad():
        model(x)
        x.add_(1)
        model(x)


# --- methods of a model: their variables are the model's own


class Features(nn.Module):
    """A model whose method runs an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.last: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        x = self.act(x)
        return x  # noqa: RET504 - the variable holds the input of the activation

    def views(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x)
        part: torch.Tensor = self.act(hidden[:, :2])
        return part

    def collects(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.body(x)]
        maps.append(self.act(maps[0]))
        return maps

    def keeps(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.body(x)
        y: torch.Tensor = self.act(self.last)
        return y

    def first_activates(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(self.act(x))
        return y

    def first_activates_a_view(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 4)
        y: torch.Tensor = self.act(x)
        return y


GLOBAL = -torch.ones(8, 4)

INTERMEDIATE: dict[str, Callable[[Features, torch.Tensor], object]] = {
    "a variable": lambda model, x: model.features(x),
    "a view of a variable": lambda model, x: model.views(x),
    "in a list": lambda model, x: model.collects(x),
    "in an attribute": lambda model, x: model.keeps(x),
    "a temporary": lambda model, x: model.first_activates(x.clone()),
    "a view of a temporary": lambda model, x: model.first_activates_a_view(x.clone()),
}
OF_THE_USER: dict[str, Callable[[Features, torch.Tensor], object]] = {
    "a variable": lambda model, x: model.first_activates(x),
    "a view of a variable": lambda model, x: model.first_activates_a_view(x),
    "in a list": lambda model, x: [x.clone(), *map(model.first_activates, [x])],
    "a global": lambda model, _: model.first_activates(GLOBAL.sub_(9)),
    "a view of a global": lambda model, _: model.first_activates_a_view(GLOBAL.sub_(9)),
    "an attribute of an object": lambda model, x: model.first_activates_a_view(boxed(x)),
}


@parametrize_cases(INTERMEDIATE)
@both_grads
def test_a_method_may_change_its_own_tensors(case: Any, grad: Callable[[], Any]) -> None:
    model, x = Features().eval(), batch()
    with watching(strict=True) as g, grad():
        case(model, x)
    assert g.violations == []


@parametrize_cases(OF_THE_USER)
def test_a_method_may_not_change_an_input_of_the_user(case: Any) -> None:
    model, x = Features().eval(), -torch.rand(8, 4) - 1
    with watching(strict=True) as g, torch.no_grad():
        case(model, x)
    assert only(g, "input-mutated").subjects == ("Features.act (ReLU)",)
