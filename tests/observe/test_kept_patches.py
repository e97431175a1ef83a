"""Patches that stay in place between windows, and other code that patches torch meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode.observe import patches
from pytest_evalmode.observe.patches import Patch
from tests.nets import batch, only, rules, watching
from tests.observe.test_forks import in_child, patched
from tests.suites import NEXT_IS_RIGHT, results

ORIGINAL = nn.Module.__call__


class Net(nn.Sequential):
    """Depends on the mode, but a forward does not change it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Dropout())


@pytest.fixture(autouse=True)
def _keep() -> Iterator[None]:
    patches.keep_in_place()
    yield
    patches.restore_all()
    assert nn.Module.__call__ is ORIGINAL
    assert patched() == []


@torch.no_grad()
def observed(*, strict: bool = False) -> set[str]:
    """Return what a window reports of a forward in training mode."""
    with watching(strict=strict) as g:
        Net()(batch())
    assert [model.forwards for model in g.window.models] == [1]
    return rules(g)


def test_patches_stay_between_windows_and_observe_only_in_them() -> None:
    assert observed(strict=True) == {"train-mode"}
    kept = patched()
    assert {"__call__", "load_state_dict", "set_num_threads"} <= {*kept}
    Net()(batch())
    assert observed(strict=True) == {"train-mode"}
    assert patched() == kept
    patches.restore_all()
    assert patched() == []
    assert observed() == {"train-mode"}
    assert patched() == []


def test_patches_of_an_open_window_are_restored_when_it_closes() -> None:
    with torch.no_grad(), watching() as g:
        observed()
        patches.restore_all()
        Net()(batch())
    assert rules(g) == {"train-mode"}
    assert patched() == []


def test_a_child_has_no_patch() -> None:
    observed()
    assert patched()
    assert in_child(patched) == "[]"
    assert in_child(observed) == "{'train-mode'}"


def test_a_patch_that_cannot_be_removed_leaves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    observed()

    def fail(self: Patch) -> None:
        if self is patches.module_call:
            raise ValueError("cannot be removed")
        release(self)

    release = Patch.release
    monkeypatch.setattr(Patch, "release", fail)
    patches.restore_all()
    assert patched() == ["__call__"]
    monkeypatch.undo()
    patches.keep_in_place()


# --- other code that patches a kept method


def hidden(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method which it stores in an attribute, where it cannot be seen."""

    class Holder:
        inner = staticmethod(method)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return holder.inner(self, *args, **kwargs)

    holder = Holder()
    return call


def visible(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return call


def mocked(method: Callable[..., Any]) -> Any:
    return mock.create_autospec(method, side_effect=method)


@pytest.mark.parametrize("wrap", [hidden, visible, mocked])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("until", ["the next window", "an unguarded test"])
def test_a_wrapper_of_a_fixture_is_called_and_can_be_undone(
    wrap: Callable[[Any], Any], before: bool, until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        assert observed() == {"train-mode"}
    monkeypatch.setattr(nn.Module, "__call__", wrapper := wrap(nn.Module.__call__))
    assert observed() == {"train-mode"}
    assert observed() == {"train-mode"}
    if until == "an unguarded test":
        patches.restore_all()
        assert nn.Module.__call__ is wrapper
        Net()(batch())
        patches.keep_in_place()
        assert observed() == {"train-mode"}
    monkeypatch.undo()
    assert observed() == {"train-mode"}
    Net()(batch())


@pytest.mark.parametrize("before", [False, True])
def test_a_method_that_a_fixture_replaced_is_restored_by_it(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(self: nn.Module, x: Tensor) -> Tensor:
        return x

    if before:
        observed()
    monkeypatch.setattr(nn.Module, "__call__", fake)
    x = batch()
    with watching():
        assert Net()(x) is x
    assert Net()(x) is x
    monkeypatch.undo()
    assert Net()(x) is not x
    assert observed() == {"train-mode"}
    assert Net()(x) is not x


@pytest.mark.parametrize("until", ["the next window", "an unguarded test"])
@pytest.mark.parametrize("undo", ["to what was there", "to torch's own"])
def test_a_wrapper_of_torchs_own_method_is_observed(until: str, undo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return ORIGINAL(self, *args, **kwargs)

    observed()
    monkeypatch.setattr(nn.Module, "__call__", wrapper)
    for _ in range(2):
        assert observed() == {"train-mode"}
    assert nn.Module.__call__ is wrapper
    if until == "an unguarded test":
        patches.restore_all()
        assert nn.Module.__call__ is wrapper
        patches.keep_in_place()
        assert observed() == {"train-mode"}
    monkeypatch.undo()
    if undo == "to torch's own":
        nn.Module.__call__ = ORIGINAL  # type: ignore[method-assign]
    before = calls
    Net()(batch())
    for _ in range(2):
        assert observed() == {"train-mode"}
    assert before
    assert calls == before


def test_every_function_of_the_table_counts_as_unpatched() -> None:
    assert [patch.name for patch in patches.TABLE if not patches._is_unpatched(patch._current())] == []


def test_a_method_is_observed_that_was_replaced_before_the_package_was_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nn.Module, "__call__", wrapper := hidden(ORIGINAL))
    monkeypatch.setattr(patches.module_call, "original", wrapper)
    assert observed() == {"train-mode"}
    monkeypatch.undo()
    assert observed() == {"train-mode"}
    patches.restore_all()
    assert observed() == {"train-mode"}


# --- classes that override `__call__`


class Noisy(nn.Linear):
    """Has its own `__call__`."""

    def __init__(self) -> None:
        nn.Linear.__init__(self, 4, 4)

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def draws(cls: type[nn.Module]) -> set[str]:
    with torch.no_grad(), watching() as g:
        cls().eval()(batch())
    return rules(g)


def test_classes_that_are_defined_between_windows_are_observed() -> None:
    assert draws(Noisy) == {"random-forward"}

    class Later(nn.Linear):
        __init__, __call__ = Noisy.__init__, Noisy.__call__

    class Plain(nn.Linear):
        __init__ = Noisy.__init__

    class Registering(nn.Linear):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            """Does not call `super()`."""

    assert draws(Later) == {"random-forward"}
    assert draws(Plain) == set()

    class Registered(Registering):
        __init__, __call__ = Noisy.__init__, Noisy.__call__

    assert draws(Registered) == {"random-forward"}
    assert draws(Noisy) == {"random-forward"}
    assert not hasattr(Noisy.__call__, "__wrapped__")


def test_a_class_that_names_the_kept_method_is_observed_once() -> None:
    observed()

    class Aliased(nn.Linear):
        __call__ = nn.Module.__call__

        def forward(self, input: Tensor) -> Tensor:
            return torch.rand_like(input)

    for _ in range(2):
        with torch.no_grad(), watching() as g:
            Aliased(4, 4).eval()(batch())
        assert only(g, "random-forward").count == 1
        patches.restore_all()


@pytest.mark.parametrize("before", [False, True])
def test_a_class_that_cannot_be_hashed_fails_no_guard(before: bool) -> None:
    class Unhashable(type):
        __hash__ = None  # type: ignore[assignment]

    if before:
        observed()
    odd = Unhashable("Odd", (nn.Linear,), {"__call__": Noisy.__call__})
    assert observed() == {"train-mode"}
    assert issubclass(odd, nn.Linear)


# --- in a session

SUITE = """
from torch import nn
from nets import *

ORIGINAL = nn.Module.__call__

@pytest.fixture
def net():
    yield Net().eval()

@pytest.mark.inference
def test_first(net):
    infer(net)

@pytest.mark.inference
def test_second(net):
    infer(net)
    infer(Net())

def test_unguarded(net):
    assert nn.Module.__call__ is ORIGINAL

def test_fixture(request):
    request.getfixturevalue("evalmode")
    infer(Net())

def test_unguarded_again(net):
    assert nn.Module.__call__ is ORIGINAL

@pytest.mark.inference
def test_last(net):
    infer(net)
"""


def test_an_unguarded_test_has_the_functions_of_torch(pytester: pytest.Pytester) -> None:
    assert results(pytester, SUITE) == NEXT_IS_RIGHT | {
        "test_first": "passed",
        "test_second": "failed",
        "test_unguarded": "passed",
        "test_fixture": "failed",
        "test_unguarded_again": "passed",
        "test_last": "passed",
    }
    assert patched() == []
