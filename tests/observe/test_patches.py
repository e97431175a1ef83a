"""Patched methods, and other code that wraps them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from pytest_evalmode import Guard, GuardError, guard
from pytest_evalmode.observe import patches
from pytest_evalmode.observe.calls.global_state_calls import GlobalStateCalls
from pytest_evalmode.observe.calls.model_operations import ModelOperations
from pytest_evalmode.observe.forwards.call_overrides import CallOverrides
from pytest_evalmode.observe.forwards.observer import ForwardObserver
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from tests.nets import Net, batch, only, rules, watching

Method = Callable[..., Any]
ORIGINALS: dict[str, Method] = {name: getattr(nn.Module, name) for name in ("__call__", "train", "load_state_dict")}
methods = pytest.mark.parametrize("name", ORIGINALS)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Restore the methods and the patches after each test."""
    used = patches.module_call, patches.module_train, patches.load_state_dict
    before = [vars(patch).copy() for patch in used]
    yield
    for name, method in ORIGINALS.items():
        setattr(nn.Module, name, method)
    for patch, attributes in zip(used, before, strict=True):
        vars(patch).update(attributes)


def wrap(name: str, seen: list[str] | None = None) -> Method:
    """Wrap a method as other code does, and leave it wrapped."""
    inner = getattr(nn.Module, name)

    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if seen is not None:
            seen.append(name)
        return inner(self, *args, **kwargs)

    setattr(nn.Module, name, wrapper)
    return wrapper


@torch.no_grad()
def observed(*, strict: bool = True) -> set[str]:
    """Return what a window reports of a partial load, and of a forward in training mode with the line that switched."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    with watching(strict=strict) as g:
        model.load_state_dict({}, strict=False)
        model.train()
        model(batch())
    return reported(g)


def reported(g: Guard) -> set[str]:
    return rules(g) | {"since" for violation in g.violations if "since" in violation.details}


NOT_STRICT = {"train-mode", "since"}
ALL = {*NOT_STRICT, "partial-load"}


@methods
def test_methods_are_restored_after_the_window(name: str) -> None:
    for strict in (True, False):
        observed(strict=strict)
        assert getattr(nn.Module, name) is ORIGINALS[name]


@methods
def test_the_replacement_looks_like_the_method(name: str) -> None:
    with guard(strict=True):
        method = getattr(nn.Module, name)
        assert method is not ORIGINALS[name]
        assert method.__name__ == ORIGINALS[name].__name__
        assert method.__wrapped__ is ORIGINALS[name]


@methods
def test_nested_windows_observe_everything(name: str) -> None:
    with watching(strict=True):
        assert observed() == ALL
        assert getattr(nn.Module, name) is not ORIGINALS[name]
        net = Net().eval()
        with torch.no_grad():
            net(batch())
    assert getattr(nn.Module, name) is ORIGINALS[name]


def test_an_outer_window_observes_what_inner_ones_observe() -> None:
    with watching(strict=True) as outer:
        assert observed() == ALL
    assert reported(outer) == ALL


@methods
@pytest.mark.parametrize("before", [(), (False,), (True,), (False, True)], ids=str)
def test_a_wrapper_from_before_the_window_is_called_and_stays(name: str, before: tuple[bool, ...]) -> None:
    """Windows with and without strict rules may have been open before."""
    for strict in before:
        observed(strict=strict)
    seen: list[str] = []
    wrapper = wrap(name, seen)
    assert observed() == ALL
    assert observed(strict=False) == NOT_STRICT
    assert observed() == ALL
    assert seen
    assert getattr(nn.Module, name) is wrapper


@methods
def test_a_wrapper_from_inside_a_window_is_called_and_stays(name: str) -> None:
    seen: list[str] = []
    with guard(strict=True):
        wrapper = wrap(name, seen)
    assert getattr(nn.Module, name) is wrapper
    assert observed() == ALL
    assert observed() == ALL
    assert seen
    assert getattr(nn.Module, name) is wrapper


@methods
def test_a_wrapper_with_an_empty_closure_cell_is_supported(name: str) -> None:
    inner = getattr(nn.Module, name)

    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (later if filled else inner)(self, *args, **kwargs)

    filled = False
    setattr(nn.Module, name, wrapper)
    assert observed() == ALL
    later, filled = inner, True
    assert observed() == ALL


@methods
def test_a_mock_that_hides_what_it_calls_is_supported(name: str) -> None:
    """Windows open inside the one in which the mock was installed, and after it has closed."""
    with watching(strict=True):
        spy = mock.patch.object(nn.Module, name, autospec=True, side_effect=getattr(nn.Module, name))
        seen = spy.start()
        assert observed() == ALL
    assert observed() == ALL
    assert observed() == ALL
    assert seen.called
    spy.stop()
    assert observed() == ALL


@methods
def test_a_wrapper_that_is_removed_inside_the_window_leaves_nothing(name: str) -> None:
    with guard(strict=True):
        replacement = getattr(nn.Module, name)
        wrap(name)
        setattr(nn.Module, name, replacement)
    assert getattr(nn.Module, name) is ORIGINALS[name]
    assert observed() == ALL


@methods
def test_a_method_that_is_restored_after_the_window_is_observed_in_the_next(name: str) -> None:
    with guard(strict=True):
        wrap(name)
    setattr(nn.Module, name, ORIGINALS[name])
    assert observed() == ALL
    assert getattr(nn.Module, name) is ORIGINALS[name]


@methods
def test_a_method_that_is_replaced_inside_a_window_is_observed_in_later_ones(name: str) -> None:
    def replacement(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return ORIGINALS[name](self, *args, **kwargs)

    with guard(strict=True):
        setattr(nn.Module, name, replacement)
    assert observed() == ALL
    assert getattr(nn.Module, name) is replacement


def test_stopping_an_observer_that_never_started_changes_nothing() -> None:
    patch = Patch(nn.Module, "load_state_dict")
    patch.replace_with(lambda self, *args, **kwargs: None)
    patch.stop(object())
    assert nn.Module.load_state_dict is ORIGINALS["load_state_dict"]
    one, two = object(), object()
    patch.start(one)
    patch.start(two)
    patch.stop(one)
    assert nn.Module.load_state_dict is not ORIGINALS["load_state_dict"]
    patch.stop(two)
    assert nn.Module.load_state_dict is ORIGINALS["load_state_dict"]


def test_a_wrapper_that_returns_none_does_not_fail_the_guard() -> None:
    inner = nn.Module.load_state_dict

    def silent(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)

    nn.Module.load_state_dict = silent  # type: ignore[method-assign]
    with guard(strict=True):
        Net().load_state_dict(Net().state_dict())
    assert nn.Module.load_state_dict is silent


def test_an_exception_passes_and_the_next_load_is_observed() -> None:
    with watching(strict=True) as g:
        with pytest.raises(RuntimeError):
            Net().load_state_dict({})
        Net().load_state_dict({}, strict=False)
    only(g, "partial-load")


TABLE = {f"{patch.level}-{getattr(patch._owner, '__name__', None)}.{patch.name}": patch for patch in patches.TABLE}
OBSERVERS = [ModelOperations, CallOverrides, ForwardObserver, GlobalStateCalls]
NOT_AT_START = {patches.capture_end, patches.module_setattr, patches.add_module}
"""Installed during a graph capture only, and once a model is shared."""


def in_place() -> set[Patch]:
    """Return the patches of the table whose function is replaced."""
    return {patch for patch in patches.TABLE if patch._current() is patch._replacement}


@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table_names_a_function_and_what_is_lost(name: str) -> None:
    """When a function of torch goes away, this tells which feature needs another way."""
    assert TABLE[name].is_available, f"gone, and with it: {TABLE[name].lost}"
    assert TABLE[name].lost
    assert TABLE[name]._replacement is not TABLE[name].original


def test_windows_install_the_patches_of_their_level() -> None:
    with guard(strict=True):
        assert in_place() == set(patches.TABLE) - NOT_AT_START
        with guard():
            pass
        assert in_place() == set(patches.TABLE) - NOT_AT_START
    with guard():
        assert in_place() == {patch for patch in patches.TABLE if patch.level == "default"} - NOT_AT_START
    assert in_place() == set()


def test_attributes_are_watched_once_a_model_is_shared() -> None:
    with guard(strict=True) as g:
        g.window.watch_fixture_value(Net(), "own", shared=False)
        assert patches.module_setattr not in in_place()
        g.window.watch_fixture_value(Net(), "shared", shared=True)
        assert patches.module_setattr in in_place()
        with g.paused():
            assert patches.module_setattr not in in_place()
        assert patches.module_setattr in in_place()
    assert in_place() == set()


def test_a_failure_to_watch_attributes_is_a_failure_of_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches.module_setattr, "start", fail)
    with suppress(GuardError), guard(strict=True) as g, g.window.safely():
        g.window.watch_fixture_value(Net(), "shared", shared=True)
    with pytest.raises(GuardError, match="internal error"):
        g.check()
    assert in_place() == set()


@pytest.mark.parametrize("owner", ["torch.nn:Gone", "torch_is_gone:Module", "torch.nn:Module"])
def test_a_function_that_is_gone_is_not_patched(owner: str) -> None:
    patch = Patch(owner, "gone")
    patch.replace_with(lambda self: None)
    patch.start(patch)
    patch.stop(patch)
    assert not patch.is_available
    assert not hasattr(nn.Module, "gone")


def test_a_window_works_without_a_function_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in patches.TABLE:
        if patch is not patches.module_call:
            monkeypatch.setattr(patch, "is_available", False)
    with watching(strict=True) as g:
        assert in_place() == {patches.module_call}
        Net().eval()(batch())
    assert rules(g) == {"grad-mode"}


def test_an_inherited_method_is_inherited_again_after_the_window() -> None:
    class Inherits(Net):
        pass

    patch, observer = Patch(Inherits, "forward"), object()
    patch.replace_with(lambda self, x: patch.original(self, x) + 1)
    model, x = Inherits().eval(), batch()
    patch.start(observer)
    assert torch.equal(model(x), Net.forward(model, x) + 1)
    patch.stop(observer)
    assert "forward" not in vars(Inherits)


def fail(*args: object, **kwargs: object) -> None:
    raise ValueError("an internal error")


def run_with_failing_guard(*, strict: bool = True) -> None:
    """Run a model in a guard that fails: the code under test does not notice, and the result is unknown."""
    results = []
    with suppress(GuardError), torch.no_grad(), guard(strict=strict) as g:
        results.append(Net().eval()(batch()))
        torch.set_num_threads(torch.get_num_threads())
    assert len(results) == 1
    with pytest.raises(GuardError, match="internal error"):
        g.check()


@pytest.mark.parametrize("name", [name for name, patch in TABLE.items() if patch not in NOT_AT_START])
def test_a_patch_that_cannot_be_installed_leaves_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TABLE[name], "start", fail)
    run_with_failing_guard()
    assert in_place() == set()


@pytest.mark.parametrize("name", [name for name, patch in TABLE.items() if patch not in NOT_AT_START])
def test_a_patch_that_cannot_be_removed_leaves_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, running = TABLE[name], set(patches._running)
    monkeypatch.setattr(patch, "stop", fail)
    run_with_failing_guard()
    assert in_place() == {patch}
    assert patches._running == running
    monkeypatch.undo()
    for observer in patch.observers:
        patch.stop(observer)
    assert in_place() == set()


@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_observer_that_cannot_start_leaves_nothing(observer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "start", fail)
    run_with_failing_guard()
    assert in_place() == set()
    assert not _global_optimizer_post_hooks


@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_observer_that_cannot_stop_leaves_no_other(observer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = observer.stop  # type: ignore[attr-defined]

    def stop_and_fail(self: patches.Observer) -> None:
        stop(self)
        fail()

    monkeypatch.setattr(observer, "stop", stop_and_fail)
    run_with_failing_guard()
    assert in_place() == set()
    assert not _global_optimizer_post_hooks


@pytest.mark.parametrize("strict", [False, True])
def test_an_error_in_an_observer_is_collected(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an observer asks for raises: the code under test gets its results nevertheless."""
    model, results = nn.Sequential(nn.Linear(4, 4), nn.Dropout()), list[Any]()
    with suppress(GuardError), guard(strict=strict) as g:
        for name in ("find_line", "find_caller", "is_user_code", "site", "is_worker_thread"):
            monkeypatch.setattr(UserLines, name, fail)
        results.append(model.train())
        results.append(model.load_state_dict({}, strict=False))
        results.append(model.requires_grad_())
        results.append(model.half().float())
        results.append(model(batch()))
        loss = results[-1].sum()
        loss.backward()
        torch.optim.SGD(model.parameters()).step()
        with ThreadPoolExecutor(1) as pool:
            results.append(pool.submit(len, "abc").result())
        results.append(torch.jit.trace(model, batch(), check_trace=False))  # type: ignore[no-untyped-call]
        results.append(torch.export.export(model.eval(), (batch(),)).module())
        torch.set_default_dtype(torch.float32)
        monkeypatch.undo()
    assert len(results) == 8
    with pytest.raises(GuardError, match="internal error"):
        g.check()
