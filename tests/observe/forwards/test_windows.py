"""Windows in windows, and others that wrap the method that a window wraps."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import HygieneError, guard
from tests.nets import Dropper, Net, batch, only, rules, watching

pytestmark = pytest.mark.usefixtures("fresh")


@torch.no_grad()
def test_nested_guards_each_see_what_runs_in_them() -> None:
    model = Net()
    with watching() as outer:
        with watching() as inner:
            model(batch())
        model.eval()(batch())
    assert rules(inner) == {"train-mode", "state-mutated"}
    assert rules(outer) == {"train-mode", "state-mutated"}
    (facts,) = outer.models
    assert facts.forwards == 2


@torch.no_grad()
def test_guards_that_overlap() -> None:
    first, second = guard(allow=["train-mode", "state-mutated"]), guard()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    Net()(batch())
    with pytest.raises(HygieneError, match="train-mode"):
        second.__exit__(None, None, None)


@torch.no_grad()
def test_a_window_inside_a_forward() -> None:
    class Careful(Dropper):
        def forward(self, x: Tensor) -> Tensor:
            with guard():
                return super().forward(x)

    with watching() as g:
        Careful().eval()(batch())
    assert not rules(g)


def test_the_method_is_put_back() -> None:
    original = nn.Module.__call__
    with guard(), guard():
        assert nn.Module.__call__ is not original
    assert nn.Module.__call__ is original
    with pytest.raises(KeyError), guard():
        raise KeyError
    assert nn.Module.__call__ is original


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Wrap the method as a profiler would; tells the types of the modules that were called from then on."""

    def wrap() -> list[str]:
        seen: list[str] = []
        beneath = nn.Module.__call__

        @wraps(beneath)
        def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(type(self).__name__)
            return beneath(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "__call__", wrapped)
        return seen

    return wrap


def guarded_once() -> int:
    """How often a guard sees a model that runs once."""
    with watching() as g, torch.no_grad():
        Dropper()(batch())
    return only(g, "train-mode").count


def test_who_wraps_the_method_before_the_window(calls: Callable[[], list[str]]) -> None:
    seen = calls()
    wrapped = nn.Module.__call__
    assert guarded_once() == 1
    assert nn.Module.__call__ is wrapped
    assert seen == ["Dropper", "Linear", "Dropout"]


def test_who_wraps_the_method_inside_the_window_and_undoes_it_there(
    calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    with watching() as g, torch.no_grad():
        seen = calls()
        Dropper()(batch())
        monkeypatch.undo()
        Dropper()(batch())
    assert seen == ["Dropper", "Linear", "Dropout"]
    assert [violation.model for violation in g.violations] == ["Dropper", "Dropper#2"]
    assert nn.Module.__call__ is original


def test_who_wraps_the_method_inside_the_window_and_undoes_it_later(
    calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    with watching() as g, torch.no_grad():
        calls()
        Dropper()(batch())
    assert only(g, "train-mode").count == 1
    monkeypatch.undo()
    assert guarded_once() == 1
    assert nn.Module.__call__ is original


def test_who_wraps_the_method_inside_the_window_for_good(
    calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    try:
        with guard():
            seen = calls()
        wrapped = nn.Module.__call__
        assert guarded_once() == 1
        assert nn.Module.__call__ is wrapped
        assert seen == ["Dropper", "Linear", "Dropout"]
    finally:
        monkeypatch.undo()
        nn.Module.__call__ = original  # type: ignore[method-assign]


@torch.no_grad()
def test_torch_wraps_the_method_for_a_while_inside_the_window() -> None:
    with watching() as g:
        torch.fx.symbolic_trace(Dropper().eval())
        Dropper()(batch())
    assert only(g, "train-mode").count == 1
