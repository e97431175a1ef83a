"""Loads with `strict=False` that left something over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode import guard
from tests.nets import Net, only, rules, watching

HEAD = {"head.bias": torch.zeros(2)}


def test_what_is_missing_and_what_is_unexpected() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    weights = {
        "0.weight": torch.ones(2, 2),
        "0.bias": torch.ones(2),
        "1.weight": torch.ones(2, 2),
        "aux": torch.ones(1),
    }
    with watching(strict=True, allow="state-mutated") as g:
        model.load_state_dict(weights, strict=False)
    violation = next(v for v in g.violations if v.rule == "partial-load")
    assert violation.details == {"missing": ["1.bias"], "unexpected": ["aux"]}
    assert violation.at is not None
    assert violation.at.source == "model.load_state_dict(weights, strict=False)"


WHOLE: dict[str, Any] = {
    "strict": lambda net: net.load_state_dict(Net().state_dict()),
    "loose, yet it fits": lambda net: net.load_state_dict(Net().state_dict(), strict=False),
    "by position": lambda net: net.load_state_dict(Net().state_dict(), False),
    "assigned": lambda net: net.load_state_dict(Net().state_dict(), strict=False, assign=True),
}


@pytest.mark.parametrize("load", WHOLE.values(), ids=WHOLE)
def test_nothing_left_over(load: Any) -> None:
    with guard(strict=True):
        load(Net())


def test_a_load_that_is_refused_is_no_partial_load() -> None:
    net = Net()
    with guard(strict=True), pytest.raises(RuntimeError):
        net.load_state_dict(HEAD)


@pytest.mark.parametrize("how", [{"strict": False}, {"strict": False, "assign": True}], ids=str)
def test_however_it_is_said(how: dict[str, bool]) -> None:
    net = Net()
    with watching(strict=True) as g:
        assert net.load_state_dict(HEAD, **how).missing_keys
    only(g, "partial-load")


def test_a_part_of_a_watched_model_is_named_by_its_path() -> None:
    net = nn.ModuleDict({"encoder": Net()})
    with watching(strict=True) as g:
        g.watch(net, "net")
        net["encoder"].load_state_dict({}, strict=False)
    violation = only(g, "partial-load")
    assert violation.model == "net"
    assert violation.subjects[0] == "net.encoder.body.weight"
    assert violation.message.startswith("net.encoder (Net) was loaded with ")


def test_of_nested_loads_each_is_told_that_left_something() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

        def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.inner.load_state_dict({}, strict=False)
            return super().load_state_dict(state_dict, *args, **kwargs)

    model = Outer()
    with watching(strict=True) as g:
        g.watch(model, "model")
        model.load_state_dict(model.state_dict())
    violation = only(g, "partial-load")
    assert violation.subjects == ("model.inner.weight", "model.inner.bias")


def test_a_class_that_overrides_it_and_calls_it() -> None:
    class Loose(Net):
        def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state_dict, strict=False)

    model = Loose()
    with watching(strict=True) as g:
        model.load_state_dict(HEAD)
    violation = only(g, "partial-load")
    assert violation.at is not None
    assert violation.at.file.endswith("test_loads.py")


def test_a_loop_tells_every_load() -> None:
    models = [Net(), Net()]
    with watching(strict=True) as g:
        for model in models:
            model.load_state_dict(HEAD, strict=False)
    assert [v.rule for v in g.violations] == ["partial-load"] * 2


def test_not_in_the_default_rules_not_while_paused_and_not_after() -> None:
    net = Net()
    with guard():
        net.load_state_dict(HEAD, strict=False)
    with watching(strict=True) as g, g.paused():
        net.load_state_dict(HEAD, strict=False)
    net.load_state_dict(HEAD, strict=False)
    assert rules(g) == set()


def test_its_result_is_what_torch_returns() -> None:
    expected = Net().load_state_dict(HEAD, strict=False)
    with watching(strict=True):
        found = Net().load_state_dict(HEAD, strict=False)
    assert found == expected
    assert type(found) is type(expected)
