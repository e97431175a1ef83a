"""A method that is wrapped while somebody observes it, and others who wrap it too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from pytest_evalmode import Guard, guard
from pytest_evalmode.observe.calls.mode_changes import train_patch
from pytest_evalmode.observe.calls.state_dict_loads import load_state_dict_patch
from pytest_evalmode.observe.forwards.observer import call_patch
from pytest_evalmode.observe.patches import Patch
from tests.nets import Net, batch, only, rules, watching

Method = Callable[..., Any]
TORCHS: dict[str, Method] = {name: getattr(nn.Module, name) for name in ("__call__", "train", "load_state_dict")}
methods = pytest.mark.parametrize("name", TORCHS)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    """Each test finds the methods, and what is known of them, as at the start."""
    wrapped = call_patch, train_patch, load_state_dict_patch
    before = [vars(each).copy() for each in wrapped]
    yield
    for name, method in TORCHS.items():
        setattr(nn.Module, name, method)
    for each, known in zip(wrapped, before, strict=True):
        vars(each).update(known)


def wrap(name: str, seen: list[str] | None = None) -> Method:
    """Wrap a method as others do, and leave it so."""
    beneath = getattr(nn.Module, name)

    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if seen is not None:
            seen.append(name)
        return beneath(self, *args, **kwargs)

    setattr(nn.Module, name, wrapper)
    return wrapper


@torch.no_grad()
def found(*, strict: bool = True) -> set[str]:
    """What a window finds in a partial load, in a forward in training mode and in the switch to it, if it sees them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    with watching(strict=strict) as g:
        model.load_state_dict({}, strict=False)
        model.train()
        model(batch())
    return told(g)


def told(g: Guard) -> set[str]:
    return rules(g) | {"since" for violation in g.violations if "since" in violation.details}


NOT_STRICT = {"train-mode", "since"}
ALL = {*NOT_STRICT, "partial-load"}


@methods
def test_nothing_outlives_the_window(name: str) -> None:
    for strict in (True, False):
        found(strict=strict)
        assert getattr(nn.Module, name) is TORCHS[name]


@methods
def test_it_looks_like_the_method(name: str) -> None:
    with guard(strict=True):
        method = getattr(nn.Module, name)
        assert method is not TORCHS[name]
        assert method.__name__ == TORCHS[name].__name__
        assert method.__wrapped__ is TORCHS[name]


@methods
def test_windows_in_windows(name: str) -> None:
    with watching(strict=True):
        assert found() == ALL
        assert getattr(nn.Module, name) is not TORCHS[name]
        net = Net().eval()
        with torch.no_grad():
            net(batch())
    assert getattr(nn.Module, name) is TORCHS[name]


def test_an_outer_window_sees_what_inner_ones_see() -> None:
    with watching(strict=True) as outer:
        assert found() == ALL
    assert told(outer) == ALL


@methods
@pytest.mark.parametrize("before", [(), (False,), (True,), (False, True)], ids=str)
def test_who_wrapped_before_the_window_is_called_and_stays(name: str, before: tuple[bool, ...]) -> None:
    """Windows without and with strict may have opened and closed before."""
    for strict in before:
        found(strict=strict)
    seen: list[str] = []
    theirs = wrap(name, seen)
    assert found() == ALL
    assert found(strict=False) == NOT_STRICT
    assert found() == ALL
    assert seen
    assert getattr(nn.Module, name) is theirs


@methods
def test_who_wraps_within_a_window_and_stays_is_called_and_tells_nobody_after(name: str) -> None:
    seen: list[str] = []
    with guard(strict=True):
        theirs = wrap(name, seen)
    assert getattr(nn.Module, name) is theirs
    assert found() == ALL
    assert found() == ALL
    assert seen
    assert getattr(nn.Module, name) is theirs


@methods
def test_who_wraps_it_in_a_closure_that_is_not_filled_yet(name: str) -> None:
    beneath = getattr(nn.Module, name)

    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (later if filled else beneath)(self, *args, **kwargs)

    filled = False
    setattr(nn.Module, name, wrapper)
    assert found() == ALL
    later, filled = beneath, True
    assert found() == ALL


@methods
def test_a_spy_of_whom_nothing_tells_what_it_calls(name: str) -> None:
    """A mock keeps what it calls where nobody can look; a window opens inside its, and after the first has closed."""
    with watching(strict=True):
        spy = mock.patch.object(nn.Module, name, autospec=True, side_effect=getattr(nn.Module, name))
        seen = spy.start()
        assert found() == ALL
    assert found() == ALL
    assert found() == ALL
    assert seen.called
    spy.stop()
    assert found() == ALL


@methods
def test_who_wraps_within_a_window_and_puts_back_leaves_nothing(name: str) -> None:
    with guard(strict=True):
        there = getattr(nn.Module, name)
        wrap(name)
        setattr(nn.Module, name, there)
    assert getattr(nn.Module, name) is TORCHS[name]
    assert found() == ALL


@methods
def test_who_puts_torchs_own_back_after_the_window_is_seen_in_the_next(name: str) -> None:
    with guard(strict=True):
        wrap(name)
    setattr(nn.Module, name, TORCHS[name])
    assert found() == ALL
    assert getattr(nn.Module, name) is TORCHS[name]


@methods
def test_who_replaces_the_method_within_a_window_and_stays_blinds_no_later_one(name: str) -> None:
    def theirs(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return TORCHS[name](self, *args, **kwargs)

    with guard(strict=True):
        setattr(nn.Module, name, theirs)
    assert found() == ALL
    assert getattr(nn.Module, name) is theirs


def test_stopping_what_never_started_changes_nothing() -> None:
    wrapped: Patch[object] = Patch("load_state_dict")
    wrapped.replace_with(lambda self, *args, **kwargs: None)
    wrapped.stop(object())
    assert nn.Module.load_state_dict is TORCHS["load_state_dict"]
    one, two = object(), object()
    wrapped.start(one)
    wrapped.start(two)
    wrapped.stop(one)
    assert nn.Module.load_state_dict is not TORCHS["load_state_dict"]
    wrapped.stop(two)
    assert nn.Module.load_state_dict is TORCHS["load_state_dict"]


def test_a_wrapper_of_theirs_that_returns_nothing_is_no_failure_of_the_guards() -> None:
    beneath = nn.Module.load_state_dict

    def silent(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        beneath(self, *args, **kwargs)

    nn.Module.load_state_dict = silent  # type: ignore[method-assign]
    with guard(strict=True):
        Net().load_state_dict(Net().state_dict())
    assert nn.Module.load_state_dict is silent


def test_an_exception_passes_and_the_next_forward_is_seen() -> None:
    with watching(strict=True) as g:
        with pytest.raises(RuntimeError):
            Net().load_state_dict({})
        Net().load_state_dict({}, strict=False)
    only(g, "partial-load")
