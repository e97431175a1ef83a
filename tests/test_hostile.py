"""Tests that patch Python and torch or use odd modules: the guard must not fail because of them."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode import GuardError, guard, inference
from tests.nets import batch, rules, watching

STRICT = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


# --- patched functions


USED_BY_TORCH = {"batch_norm", "is_scripting"}
"""Functions that torch's own layers look up when they run."""


def _functions(module: ModuleType) -> list[str]:
    functions = {name for name, value in vars(module).items() if callable(value) and not isinstance(value, type)}
    return sorted(functions - USED_BY_TORCH)


PATCHED: dict[str, tuple[ModuleType, list[str]]] = {
    "time": (time, _functions(time)),
    "random": (random, _functions(random)),
    "threading": (threading, ["get_ident", "current_thread", "main_thread", "enumerate"]),
    "gc": (gc, ["get_objects", "collect"]),
    "os": (os, ["getcwd", "getpid", "getenv", "listdir", "urandom"]),
    "torch": (torch, [*_functions(torch), "device", "no_grad", "inference_mode", "set_grad_enabled", "Generator"]),
    "torch.jit": (torch.jit, _functions(torch.jit)),
    "torch.cuda": (torch.cuda, _functions(torch.cuda)),
    "torch.compiler": (torch.compiler, _functions(torch.compiler)),
    "torch.accelerator": (torch.accelerator, _functions(torch.accelerator)),
    "torch.random": (torch.random, _functions(torch.random)),
    "torch.nn.functional": (nn.functional, ["dropout", "relu"]),
}


def _boom(*_: object, **__: object) -> Any:
    raise ValueError("patched by the test")


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()


@STRICT
@pytest.mark.parametrize("module", PATCHED)
def test_the_guard_uses_no_function_that_a_test_may_patch(
    module: str, strict: bool, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, names = PATCHED[module]
    x, no_grad = batch(), torch.no_grad()
    with watching(net, strict=strict) as g, no_grad, monkeypatch.context() as patched:
        for name in names:
            patched.setattr(place, name, _boom)
        net(x)
        net.train()
        net(x)
        g.violations  # noqa: B018  # read while still patched
    assert g.window.failures == ()
    assert {"train-mode", "state-mutated"} <= rules(g)


def test_the_guard_does_not_read_a_patched_clock(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[int] = []
    with guard(net), torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: ticks.append(1))
        net(batch())
    assert ticks == []


def test_a_python_draw_is_reported_with_a_patched_random_module(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opposite case: patching must not hide a violation."""

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * draw()

    draw = random.random
    model = nn.Sequential(net, Noisy()).eval()
    with watching(strict=True) as g, torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(random, "getstate", _boom)
        model(batch())
    assert rules(g) == {"random-forward"}


# --- odd modules


class Uninitialized(nn.Module):
    def __init__(self) -> None:
        self.scale = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class WithoutMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    @property
    def training(self) -> bool:
        raise RuntimeError("it has no mode")

    @training.setter
    def training(self, _: bool) -> None: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lin(x)
        return out


class WithoutModuleName(WithoutMode):
    __module__ = None  # type: ignore[assignment]
    training = False


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor
        self.register_buffer("table", torch.ones(4))

    @torch.jit.export
    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul(self.table)


class WithTables(WithoutMode):
    training = False

    def __init__(self) -> None:
        super().__init__()
        self.tables = torch.jit.script(Tables())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.tables.scale(self.lin(x))
        return out


@STRICT
def test_a_module_without_super_init(strict: bool) -> None:
    whole = nn.Sequential(nn.Linear(4, 4), nn.Sequential()).eval()
    whole[1].add_module("part", Uninitialized())
    with guard(strict=strict), torch.no_grad():
        for model in (Uninitialized(), whole):
            with pytest.raises(AttributeError):
                model(batch())


@STRICT
@pytest.mark.parametrize("make", [WithoutMode, WithoutModuleName, WithTables])
def test_an_odd_module(make: Callable[[], nn.Module], strict: bool) -> None:
    model = nn.Sequential(make(), nn.Dropout()).eval()
    with guard(model, strict=strict), torch.no_grad():
        make().eval()(batch())
        model(batch())


@pytest.mark.parametrize("make", [WithoutMode, WithoutModuleName, WithTables])
def test_a_violation_next_to_an_odd_module_is_reported(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(make().eval(), nn.Dropout())
    with watching() as g, torch.no_grad():
        model(batch())
    assert rules(g) == {"train-mode"}


def test_inference_of_a_module_without_a_mode() -> None:
    model = nn.Sequential(WithoutMode(), nn.Dropout())
    with inference(model):
        model(batch())
    assert model[1].training


# --- recursion limit


@STRICT
def test_a_test_that_reaches_the_recursion_limit(strict: bool, net: nn.Module) -> None:
    ran = [0, 0]

    def down() -> None:
        try:
            net(batch())
            ran[0] += 1
        except RecursionError:
            ran[1] += 1
        down()

    with guard(net, strict=strict), torch.no_grad(), pytest.raises(RecursionError):
        down()
    assert all(ran)


def test_any_other_error_in_the_guard_is_reported(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The opposite case: only RecursionError is not a failure of the guard."""
    monkeypatch.setattr("pytest_evalmode.observe.state.generators.state", _boom)
    with pytest.raises(GuardError), guard(net), torch.no_grad():
        net(batch())
