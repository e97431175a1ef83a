"""Loads with `strict=False` that left something over."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
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


def test_a_nested_load_that_the_outer_one_completes() -> None:
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
    assert rules(g) == set()


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


# --- several loads


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def half(of: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in pair().state_dict().items() if key.startswith(of)}


COMPLETE: dict[str, Callable[[nn.Sequential], object]] = {
    "halves": lambda m: (m.load_state_dict(half("0."), strict=False), m.load_state_dict(half("1."), strict=False)),
    "a part of it before": lambda m: (
        m[1].load_state_dict(nn.Linear(4, 2).state_dict()),
        m.load_state_dict(half("0."), strict=False),
    ),
    "a part of it after": lambda m: (
        m.load_state_dict(half("0."), strict=False),
        m[1].load_state_dict(nn.Linear(4, 2).state_dict()),
    ),
    "all of it, later": lambda m: (m.load_state_dict(half("0."), strict=False), m.load_state_dict(pair().state_dict())),
    "assigned": lambda m: [m.load_state_dict(half(of), strict=False, assign=True) for of in "01"],
}


@pytest.mark.parametrize("load", COMPLETE.values(), ids=COMPLETE)
def test_loads_that_complete_each_other(load: Callable[[nn.Sequential], object]) -> None:
    with guard(strict=True):
        load(pair())


def test_what_no_load_filled_is_told() -> None:
    one, other = pair(), pair()
    with watching(strict=True) as g:
        one.load_state_dict(half("0."), strict=False)
        one[1].load_state_dict({"weight": torch.ones(2, 4)}, strict=False)
        other.load_state_dict(half("1."), strict=False)  # another model's load fills nothing here
    missing = [v.details["missing"] for v in g.violations if v.rule == "partial-load"]
    assert missing == [["1.bias"], ["bias"], ["0.weight", "0.bias"]]


def test_what_was_unexpected_is_told_though_another_load_completes_it() -> None:
    model = pair()
    with watching(strict=True) as g:
        model.load_state_dict({**half("0."), **HEAD}, strict=False)
        model.load_state_dict(half("1."), strict=False)
    assert only(g, "partial-load").details == {"missing": [], "unexpected": ["head.bias"]}


def test_a_weight_that_is_tied_to_one_that_was_loaded_is_not_missing() -> None:
    model = pair()
    model[1] = model[0]
    with guard(strict=True):
        model.load_state_dict(half("0."), strict=False)


# --- a library's load

LIBRARY = """
def fill(model, weights):
    return model.load_state_dict(weights, strict=False)

class Loads:
    def load_state_dict(self, weights, strict=True):
        return super().load_state_dict(weights, strict=strict)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "adapters_for_test.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    yield importlib.import_module("adapters_for_test")
    del sys.modules["adapters_for_test"]


def test_an_adapter_s_load_is_judged_only_where_it_matched_nothing(library: Any) -> None:
    with watching(strict=True) as g:
        library.fill(pair(), half("0."))
        library.fill(pair(), {**half("0."), **HEAD})
        assert rules(g) == set()
        library.fill(pair(), HEAD)
    assert only(g, "partial-load").details["unexpected"] == ["head.bias"]


def test_a_load_of_the_user_s_by_way_of_a_library_s_override_is_the_user_s(library: Any) -> None:
    model = type("Model", (library.Loads, nn.Sequential), {})(nn.Linear(4, 4), nn.Linear(4, 2))
    with watching(strict=True) as g:
        model.load_state_dict(half("0."), strict=False)
    assert only(g, "partial-load").details["missing"] == ["1.weight", "1.bias"]
