"""Loads with `strict=False` that had missing or unexpected keys."""

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


def test_missing_and_unexpected_keys_are_reported() -> None:
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


COMPLETE_LOADS: dict[str, Any] = {
    "strict": lambda net: net.load_state_dict(Net().state_dict()),
    "not strict, but complete": lambda net: net.load_state_dict(Net().state_dict(), strict=False),
    "by position": lambda net: net.load_state_dict(Net().state_dict(), False),
    "assigned": lambda net: net.load_state_dict(Net().state_dict(), strict=False, assign=True),
}


@pytest.mark.parametrize("load", COMPLETE_LOADS.values(), ids=COMPLETE_LOADS)
def test_a_complete_load_is_clean(load: Any) -> None:
    with guard(strict=True):
        load(Net())


def test_a_load_that_raises_is_not_a_partial_load() -> None:
    net = Net()
    with guard(strict=True), pytest.raises(RuntimeError):
        net.load_state_dict(HEAD)


@pytest.mark.parametrize("arguments", [{"strict": False}, {"strict": False, "assign": True}], ids=str)
def test_a_partial_load_is_reported_with_and_without_assign(arguments: dict[str, bool]) -> None:
    net = Net()
    with watching(strict=True) as g:
        assert net.load_state_dict(HEAD, **arguments).missing_keys
    only(g, "partial-load")


def test_a_submodule_of_a_watched_model_is_named_by_its_path() -> None:
    net = nn.ModuleDict({"encoder": Net()})
    with watching(strict=True) as g:
        g.watch(net, "net")
        net["encoder"].load_state_dict({}, strict=False)
    violation = only(g, "partial-load")
    assert violation.model == "net"
    assert violation.subjects[0] == "net.encoder.body.weight"
    assert violation.message.startswith("net.encoder (Net) was loaded with ")


def test_a_nested_load_that_the_outer_one_completes_is_clean() -> None:
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


def test_an_override_of_load_state_dict_is_observed() -> None:
    class Loose(Net):
        def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state_dict, strict=False)

    model = Loose()
    with watching(strict=True) as g:
        model.load_state_dict(HEAD)
    violation = only(g, "partial-load")
    assert violation.at is not None
    assert violation.at.file.endswith("test_state_dict_loads.py")


def test_every_load_of_a_loop_is_reported() -> None:
    models = [Net(), Net()]
    with watching(strict=True) as g:
        for model in models:
            model.load_state_dict(HEAD, strict=False)
    assert [v.rule for v in g.violations] == ["partial-load"] * 2


def test_partial_loads_are_not_reported_by_default_or_in_a_pause_or_after_the_window() -> None:
    net = Net()
    with guard():
        net.load_state_dict(HEAD, strict=False)
    with watching(strict=True) as g, g.paused():
        net.load_state_dict(HEAD, strict=False)
    net.load_state_dict(HEAD, strict=False)
    assert rules(g) == set()


def test_the_result_is_the_same_with_a_guard() -> None:
    expected = Net().load_state_dict(HEAD, strict=False)
    with watching(strict=True):
        guarded = Net().load_state_dict(HEAD, strict=False)
    assert guarded == expected
    assert type(guarded) is type(expected)


# --- several loads


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def half(prefix: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in pair().state_dict().items() if key.startswith(prefix)}


COMPLEMENTARY_LOADS: dict[str, Callable[[nn.Sequential], object]] = {
    "halves": lambda m: (m.load_state_dict(half("0."), strict=False), m.load_state_dict(half("1."), strict=False)),
    "a submodule before": lambda m: (
        m[1].load_state_dict(nn.Linear(4, 2).state_dict()),
        m.load_state_dict(half("0."), strict=False),
    ),
    "a submodule after": lambda m: (
        m.load_state_dict(half("0."), strict=False),
        m[1].load_state_dict(nn.Linear(4, 2).state_dict()),
    ),
    "everything later": lambda m: (m.load_state_dict(half("0."), strict=False), m.load_state_dict(pair().state_dict())),
    "assigned": lambda m: [m.load_state_dict(half(prefix), strict=False, assign=True) for prefix in "01"],
}


@pytest.mark.parametrize("load", COMPLEMENTARY_LOADS.values(), ids=COMPLEMENTARY_LOADS)
def test_loads_that_complete_each_other_are_clean(load: Callable[[nn.Sequential], object]) -> None:
    with guard(strict=True):
        load(pair())


def test_keys_that_no_load_filled_are_reported() -> None:
    one, other = pair(), pair()
    with watching(strict=True) as g:
        one.load_state_dict(half("0."), strict=False)
        one[1].load_state_dict({"weight": torch.ones(2, 4)}, strict=False)
        other.load_state_dict(half("1."), strict=False)  # another model's load fills nothing here
    missing = [v.details["missing"] for v in g.violations if v.rule == "partial-load"]
    assert missing == [["1.bias"], ["bias"], ["0.weight", "0.bias"]]


def test_unexpected_keys_are_reported_even_if_another_load_completes_the_model() -> None:
    model = pair()
    with watching(strict=True) as g:
        model.load_state_dict({**half("0."), **HEAD}, strict=False)
        model.load_state_dict(half("1."), strict=False)
    assert only(g, "partial-load").details == {"missing": [], "unexpected": ["head.bias"]}


def test_a_weight_tied_to_a_loaded_one_is_not_missing() -> None:
    model = pair()
    model[1] = model[0]
    with guard(strict=True):
        model.load_state_dict(half("0."), strict=False)


# --- loads by a library

LIBRARY = """
def fill(model, weights):
    return model.load_state_dict(weights, strict=False)

class LoadMixin:
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


def test_a_load_by_a_library_is_reported_only_if_it_matched_nothing(library: Any) -> None:
    with watching(strict=True) as g:
        library.fill(pair(), half("0."))
        library.fill(pair(), {**half("0."), **HEAD})
        assert rules(g) == set()
        library.fill(pair(), HEAD)
    assert only(g, "partial-load").details["unexpected"] == ["head.bias"]


def test_a_load_by_the_user_through_a_library_override_is_reported(library: Any) -> None:
    model = type("Model", (library.LoadMixin, nn.Sequential), {})(nn.Linear(4, 4), nn.Linear(4, 2))
    with watching(strict=True) as g:
        model.load_state_dict(half("0."), strict=False)
    assert only(g, "partial-load").details["missing"] == ["1.weight", "1.bias"]
