"""When a tensor changed, and the line in the model that wrote to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver

from pytest_evalmode.rules import Violation
from tests.nets import rules, watching

X = torch.ones(1, 2)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Queue(nn.Module):
    """Keeps a queue and an average of its weights, as contrastive models do, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(2, 2), nn.Linear(2, 2)
        self.register_buffer("queue", torch.zeros(40_000))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def enqueue(self) -> None:
        self.queue[:2] = 1.0  # type: ignore[operator]
        self.pointer.add_(2)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for mine, slow in zip(self.query.parameters(), self.key.parameters(), strict=True):
            slow.data = slow.data * 0.9 + mine.data * 0.1
        self.enqueue()
        y: Tensor = self.query(x)
        return y


class Clears(nn.Module):
    """Writes to a buffer of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm.running_mean is not None
        self.norm.running_mean.zero_()
        y: Tensor = self.norm(x)
        return y


class Normed(nn.Module):
    """Its embedding is renormalized by torch's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2, max_norm=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.table(x.long())
        return y


def change_of(model: Any, run: Callable[[Any], object], *, known: bool, strict: bool = False) -> Violation:
    with watching(*([model] if known else []), strict=strict) as g:
        run(model)
    (violation,) = (each for each in g.violations if each.rule == "state-mutated")
    return violation


def write_then_run(model: Any) -> None:
    model[0].weight.data.add_(1)
    model(X)


def run_then_write(model: Any) -> None:
    model(X)
    model[0].weight.data.add_(1)


def run_write_run(model: nn.Sequential) -> None:
    run_then_write(model)
    model(X)


STRICT = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


@STRICT
@pytest.mark.parametrize(
    ("run", "when", "line"),
    [
        (write_then_run, "before the model's first forward", "model(X)"),
        (run_then_write, "after the model's first forward", "model(X)"),
        (run_write_run, "after the model's first forward", "model(X)"),
    ],
)
def test_a_write_beside_the_forwards_is_dated(
    run: Callable[[nn.Sequential], None], when: str, line: str, strict: bool
) -> None:
    violation = change_of(nn.Sequential(nn.Linear(2, 2)).eval(), run, known=True, strict=strict)
    assert violation.details["when"] == when
    assert violation.at is not None
    assert violation.at.source == line
    assert violation.cause is None


@STRICT
@pytest.mark.parametrize("known", [True, False], ids=["known", "first seen"])
@pytest.mark.parametrize(
    ("make", "source"),
    [
        (Queue, "self.pointer.add_(2)"),
        (Clears, "self.norm.running_mean.zero_()"),
        (Normed, ""),
        (lambda: nn.Sequential(nn.Linear(2, 2), MinMaxObserver()), ""),
    ],
    ids=["queue", "submodule", "embedding", "observer"],
)
def test_a_write_inside_a_forward_has_its_line(
    make: Callable[[], nn.Module], source: str, known: bool, strict: bool
) -> None:
    model = make().eval()
    if isinstance(model, Clears):
        model.norm.running_mean.fill_(3.0)  # type: ignore[union-attr]
    violation = change_of(model, lambda model: [model(X), model(X)], known=known, strict=strict)
    assert violation.details["when"] == "in the model's first forward"
    assert (violation.cause.source.partition("  #")[0] if violation.cause else "") == source
    assert "self.training" in violation.remedy


@pytest.mark.parametrize("make", [Queue, Normed, lambda: nn.Linear(2, 2)])
def test_a_forward_that_writes_nothing_is_clean(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    model.forward = lambda x: x
    with watching(model) as g:
        model(X)
    assert rules(g) == set()


@contextmanager
def averaged(model: nn.Linear) -> Iterator[None]:
    own = model.weight.clone()
    model.weight.data.mul_(0.9)
    try:
        yield
    finally:
        model.weight.data.copy_(own)


def run_averaged(model: nn.Linear) -> None:
    with averaged(model):
        model(X)


@STRICT
def test_weights_that_are_swapped_in_for_the_forward(strict: bool) -> None:
    violation = change_of(nn.Linear(2, 2).eval(), run_averaged, known=False, strict=strict)
    assert "swapped in for the forward" in violation.remedy
    assert "evalmode.watch(model) before the swap" in violation.remedy
    model = nn.Linear(2, 2).eval()
    with watching(strict=strict) as g:
        g.watch(model)  # as the fix says
        run_averaged(model)
    assert rules(g) == set()


def test_the_swap_is_not_suggested_for_a_model_that_was_known_or_for_a_buffer() -> None:
    violation = change_of(nn.Sequential(nn.Linear(2, 2)).eval(), run_then_write, known=True)
    assert "swapped" not in violation.remedy
    violation = change_of(Queue().eval(), lambda model: model(X), known=False)
    assert "swapped" not in violation.remedy


class TestSeveralWrites:
    """A call is named for the tensors that it explains, even if others changed in another way."""

    def convert(self, model: nn.Sequential) -> None:
        model(X)
        model.to(torch.bfloat16)
        model[1] = nn.Linear(2, 3, dtype=torch.bfloat16).eval()
        model(X.to(torch.bfloat16))

    def load(self, model: nn.Sequential) -> None:
        model(X)
        model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
        model[1] = nn.Linear(2, 3).eval()
        model(X)

    @STRICT
    @pytest.mark.parametrize(("method", "line"), [("convert", "model.to("), ("load", "model.load_state_dict(")])
    def test_each_group_of_tensors_has_its_own_violation(self, method: str, line: str, strict: bool) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
        with watching(model, strict=strict) as g:
            getattr(self, method)(model)
        explained, other = (each for each in g.violations if each.rule == "state-mutated")
        assert explained.at is not None
        assert explained.at.source.startswith(line)
        assert set(explained.subjects) >= {"Sequential.0.weight", "Sequential.0.bias"}
        assert "Sequential.1.weight" in other.subjects
        assert other.since is None

    def test_a_conversion_alone_is_one_violation(self) -> None:
        violation = change_of(nn.Linear(2, 2).eval(), lambda m: [m(X), m.to(torch.bfloat16)], known=True)
        assert violation.since is not None
        assert len(violation.subjects) == 2
