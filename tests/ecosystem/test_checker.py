"""The checker of public architectures: it sees an alarm, a miss and a change of the guard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ecosystem", reason="the source distribution does not have it")

from ecosystem import architectures
from ecosystem.architectures import Architecture, CannotRunError, Result, changes, check
from pytest_evalmode import guard


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x))


def net(*parts: nn.Module) -> Architecture:
    return Architecture("net", lambda: nn.Sequential(nn.Linear(3, 4), *parts), lambda: {"input": torch.ones(2, 3)})


DROPOUT = net(nn.Dropout())


@contextmanager
def that_alarms(**settings: Any) -> Iterator[Any]:
    with guard(**settings) as g:
        yield g
    cast("list[Any]", g.violations).append(SimpleNamespace(rule="batch-stats"))


@contextmanager
def that_misses(**settings: Any) -> Iterator[Any]:
    yield SimpleNamespace(violations=[])


@contextmanager
def that_draws(**settings: Any) -> Iterator[Any]:
    with guard(**settings) as g:
        torch.rand(1)
        yield g


def test_what_is_as_expected_is_a_name() -> None:
    assert check(DROPOUT).as_row().keys() == {"name", "plain_seconds", "guarded_seconds"}


def test_a_model_that_does_not_depend_on_the_mode() -> None:
    assert check(net(nn.ReLU())).deviations == ()


def test_running_statistics_change_in_training_mode() -> None:
    assert check(net(nn.BatchNorm1d(4))).training == ("state-mutated", "train-mode")


def test_a_batch_norm_without_statistics_and_a_random_forward_are_by_design() -> None:
    assert check(net(nn.BatchNorm1d(4, track_running_stats=False))).clean == ("batch-stats",)
    noisy = check(Architecture("noisy", Noisy, lambda: {"x": torch.ones(2, 3)}))
    assert noisy.clean == ("random-forward",)
    assert noisy.deviations == ()


@pytest.mark.parametrize(
    ("broken", "deviation"),
    [
        (that_alarms, "batch-stats without a cause"),
        (that_misses, "a forgotten eval() is missed"),
        (that_misses, "a forgotten no_grad() is missed"),
        (that_draws, "the guard changes the result"),
    ],
)
def test_a_broken_guard_shows(broken: Any, deviation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "guard", broken)
    assert deviation in check(DROPOUT).deviations


def test_a_model_that_cannot_run_is_not_a_result() -> None:
    with pytest.raises(CannotRunError, match="RuntimeError"):
        check(net(nn.Linear(3, 4)))


def test_changes_are_bit_for_bit() -> None:
    before = {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)}
    assert changes(before, {name: tensor.clone() for name, tensor in before.items()}) == ""
    assert changes(before, before | {"b": torch.ones(2).half()})
    assert changes(before, before | {"a": torch.tensor([1.0, 2.0])})
    assert changes(before, {"a": before["a"]})


def test_the_defaults_of_a_result_are_left_out() -> None:
    assert Result("net").as_row() == {"name": "net"}
    assert Result("net", training=()).as_row() == {"name": "net", "training": ()}
