"""Code that changed is a change of the preprocessing; another form of the same code is not."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode.lock.preprocessing import describe, find_differences

SOURCE = """
from functools import partial
def helper(x):
    return EXPRESSION
def function(x):
    return helper(x)
def default(x, by=NUMBER):
    return x / by
SCALE = NUMBER
def uses_constant(x):
    return x / SCALE
def calls_constant(x):
    return uses_constant(x)
class Transform:
    def __init__(self, size=224):
        self.size = size
    def __call__(self, x):
        return EXPRESSION
class Module(torch.nn.Module):
    def forward(self, x):
        return EXPRESSION
class Inherits(Module):
    pass
class Steps:
    def __init__(self):
        self.fn = self._do
    def _do(self, x):
        return EXPRESSION
    def __call__(self, x):
        return self.fn(x)
class Static:
    @staticmethod
    def scale(x):
        return EXPRESSION
    def __call__(self, x):
        return self.scale(x)
class Table:
    table = {"a": NUMBER}
    def __call__(self, x):
        return x
class Compose:
    def __init__(self, *transforms):
        self.transforms = transforms
    def __call__(self, x):
        for each in self.transforms:
            x = each(x)
        return x
class Reads:
    def __call__(self, x):
        return OBJECT(x)
OBJECT = Transform()
plain = lambda x: EXPRESSION
nested = lambda: Compose(Compose(Transform()), lambda x: x)
in_modules = lambda: torch.nn.Sequential(torch.nn.Sequential(Module()))
in_partial = lambda: partial(helper)
method = lambda: Transform().__call__
"""


def module(expression: str, number: str = "1") -> dict[str, Any]:
    names = {"torch": torch}
    exec(SOURCE.replace("EXPRESSION", expression).replace("NUMBER", number), names)
    return names


def described(value: Any) -> Any:
    return json.loads(json.dumps(describe(value)))


def differences(one: Any, other: Any) -> list[str]:
    return find_differences(described(one), described(other))


WORDS = {
    "helper": "helper: its code changed (helper)",
    "function": "function: its code changed (helper)",
    "plain": "<lambda>: its code changed (<lambda>)",
    "default": "by: 1 -> 2",
    "uses_constant": "SCALE: 1 -> 2",
    "calls_constant": "uses_constant.SCALE: 1 -> 2",
    "Transform": "Transform: its code changed (Transform.__call__)",
    "Module": "Module: its code changed (Module.forward)",
    "Inherits": "Inherits: its code changed (Module.forward)",
    "Steps": "Steps: its code changed (Steps._do)",
    "Static": "Static: its code changed (Static.scale)",
    "Table": "Table.table.a: 1 -> 2",
    "Reads": "Transform.__call__",
    "nested": "Transform: its code changed (Transform.__call__)",
    "in_modules": "Module: its code changed (Module.forward)",
    "in_partial": "its code changed (helper)",
    "method": "of: its code changed (Transform.__call__)",
}
MADE = ("Transform", "Module", "Inherits", "Steps", "Static", "Table", "Reads", "nested", "in_modules", "in_partial")


@pytest.mark.parametrize("name", WORDS)
def test_code_that_changed_is_reported(name: str) -> None:
    old, new, same = (module(*each)[name] for each in (("x / 255", "1"), ("x / 127.5 - 1", "2"), ("x / 255", "1")))
    if name in (*MADE, "method"):
        old, new, same = old(), new(), same()
    assert differences(old, same) == []
    (line,) = differences(old, new)
    assert WORDS[name] in line


CACHE: dict[int, int] = {}
CALLS: list[int] = []


class Used:
    """Counts its calls and caches, in each of the ways that people do it."""

    def __init__(self) -> None:
        self.size = 224
        self.calls, self.seen, self.last = 0, set[int](), None
        self.cache: dict[int, int] = {}
        self.lookups: dict[str, int] = {}
        self.statistics = {"calls": 0}

    @functools.cached_property
    def double(self) -> int:
        return self.size * 2

    def __call__(self, x: int) -> int:
        self.calls += 1
        self.seen.add(x)
        self.cache[x] = x
        self._remember(x)
        self.statistics["calls"] += 1
        CALLS.append(x)
        return x + self.double

    def _remember(self, x: int) -> None:
        self.last = x  # type: ignore[assignment]
        self.lookups.setdefault(str(x), x)


class Counts(nn.Module):
    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def remembers(x: int) -> int:
    CACHE[x] = x
    return x


@pytest.mark.parametrize("make", [Used, Counts, lambda: remembers, lambda: functools.lru_cache(remembers)])
def test_counters_and_caches_are_no_change(make: Callable[[], Any]) -> None:
    value = make()
    before = described(value)
    with torch.no_grad():
        value(torch.ones(2)) if isinstance(value, nn.Module) else value(3)
    assert find_differences(before, described(value)) == []


def test_a_parameter_that_a_setter_changes_is_described() -> None:
    class Resize:
        def __init__(self) -> None:
            self.set(224)

        def set(self, size: int) -> None:
            self.size = size

        def __call__(self, x: int) -> int:
            return x * self.size

    other = Resize()
    other.set(256)
    assert differences(Resize(), other) == ["Resize.size: 224 -> 256"]


def scale(x: torch.Tensor) -> torch.Tensor:
    """Scale."""
    return x / 255


class Scale(nn.Module):
    def __init__(self, by: float = 255.0) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.by


FORMS: dict[str, tuple[Any, Any]] = {
    "a compiled module": (Scale(), torch.compile(Scale())),
    "a compiled function": (scale, torch.compile(scale)),
    "a scripted function": (scale, torch.jit.script(scale)),
    "without gradients": (scale, torch.no_grad()(scale)),
    "inference mode": (scale, torch.inference_mode()(scale)),
    "a cached function": (scale, functools.lru_cache(scale)),
    "data parallel": (Scale(), nn.DataParallel(Scale())),
    "a container of one": (nn.Sequential(Scale()), Scale()),
    "the same lambda on another line": (
        lambda x: x / 255,
        lambda x: x / 255,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_another_form_of_the_same_step_is_no_change(name: str) -> None:
    one, other = FORMS[name]
    assert differences(one, other) == differences(other, one) == []
    if isinstance(one, Scale):
        assert differences(torch.compile(Scale(1.0)), one) == ["Scale.by: 1.0 -> 255.0"]


def test_a_docstring_is_no_code() -> None:
    def one(x: int) -> int:
        """Return x."""
        return x

    other: Any = one
    old = described(one)

    def one(x: int) -> int:  # type: ignore[no-redef]
        """Return the number."""
        return x

    assert other is not one
    assert find_differences(old, described(one)) == []
