"""Nested windows, and other code that patches `nn.Module.__call__` too."""

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
def test_nested_guards_each_observe_their_forwards() -> None:
    model = Net()
    with watching() as outer:
        with watching() as inner:
            model(batch())
        model.eval()(batch())
    assert rules(inner) == {"train-mode", "state-mutated"}
    assert rules(outer) == {"train-mode", "state-mutated"}
    (facts,) = outer.window.models
    assert facts.forwards == 2


@torch.no_grad()
def test_overlapping_guards_are_independent() -> None:
    first, second = guard(allow=["train-mode", "state-mutated"]), guard()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    Net()(batch())
    with pytest.raises(HygieneError, match="train-mode"):
        second.__exit__(None, None, None)


@torch.no_grad()
def test_a_guard_inside_a_forward_is_clean() -> None:
    class Careful(Dropper):
        def forward(self, x: Tensor) -> Tensor:
            with guard():
                return super().forward(x)

    with watching() as g:
        Careful().eval()(batch())
    assert not rules(g)


def test_the_method_is_restored() -> None:
    original = nn.Module.__call__
    with guard(), guard():
        assert nn.Module.__call__ is not original
    assert nn.Module.__call__ is original
    with pytest.raises(KeyError), guard():
        raise KeyError
    assert nn.Module.__call__ is original


@pytest.fixture
def patch_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Patch the method as a profiler would; the list holds the types of the modules called since."""

    def wrap() -> list[str]:
        called: list[str] = []
        original = nn.Module.__call__

        @wraps(original)
        def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            called.append(type(self).__name__)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "__call__", wrapped)
        return called

    return wrap


def observed_count() -> int:
    """Return how often a guard counts a model that runs once."""
    with watching() as g, torch.no_grad():
        Dropper()(batch())
    return only(g, "train-mode").count


def test_a_patch_from_before_the_window_stays(patch_call: Callable[[], list[str]]) -> None:
    called = patch_call()
    wrapped = nn.Module.__call__
    assert observed_count() == 1
    assert nn.Module.__call__ is wrapped
    assert called == ["Dropper", "Linear", "Dropout"]


def test_a_patch_undone_inside_the_window(patch_call: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Module.__call__
    with watching() as g, torch.no_grad():
        called = patch_call()
        Dropper()(batch())
        monkeypatch.undo()
        Dropper()(batch())
    assert called == ["Dropper", "Linear", "Dropout"]
    assert [violation.model for violation in g.violations] == ["Dropper", "Dropper#2"]
    assert nn.Module.__call__ is original


def test_a_patch_undone_after_the_window(patch_call: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Module.__call__
    with watching() as g, torch.no_grad():
        patch_call()
        Dropper()(batch())
    assert only(g, "train-mode").count == 1
    monkeypatch.undo()
    assert observed_count() == 1
    assert nn.Module.__call__ is original


def test_a_patch_from_inside_the_window_stays(
    patch_call: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    try:
        with guard():
            called = patch_call()
        wrapped = nn.Module.__call__
        assert observed_count() == 1
        assert nn.Module.__call__ is wrapped
        assert called == ["Dropper", "Linear", "Dropout"]
    finally:
        monkeypatch.undo()
        nn.Module.__call__ = original  # type: ignore[method-assign]


@torch.no_grad()
def test_torch_fx_patches_the_method_inside_the_window() -> None:
    with watching() as g:
        torch.fx.symbolic_trace(Dropper().eval())
        Dropper()(batch())
    assert only(g, "train-mode").count == 1
