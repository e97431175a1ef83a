"""Optimizer steps: the models that they train, and when they are not reported."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_evalmode import guard
from pytest_evalmode.errors import GuardError
from pytest_evalmode.guards import Guard
from pytest_evalmode.observe.models.registry import Registry

ALL = ("train-mode", "grad-mode", "state-mutated")


def train(*models: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)
    torch.autograd.backward(torch.stack([model(torch.ones(2, 4)).sum() for model in models]).sum())
    optimizer.step()


def steps(g: Guard) -> list[tuple[tuple[str, ...], str]]:
    return [(step.models, step.name) for step in g.window.trace.steps]


def test_a_step_names_the_models_that_it_trains_and_its_line() -> None:
    head, body, other = nn.Linear(4, 1), nn.Linear(4, 2), nn.Bilinear(4, 4, 1)
    with guard(head, body, other, allow=ALL) as g:
        train(head, body)
        train(head, body)
    assert steps(g) == [(("Linear", "Linear#2"), "SGD.step()")]
    assert (g.window.trace.steps[0].at and g.window.trace.steps[0].at.source) == "optimizer.step()"


def test_a_step_in_a_pause_or_of_an_unwatched_parameter_is_not_reported() -> None:
    net = nn.Linear(4, 1)
    with guard(net, allow=ALL) as g:
        with g.paused():
            train(net)
        unwatched = nn.Parameter(torch.ones(1))
        unwatched.grad = torch.ones(1)
        torch.optim.SGD([unwatched], lr=0.1).step()
    assert steps(g) == []
    train(net)  # after the end
    assert steps(g) == []


def test_an_error_of_the_observer_fails_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("the guard is broken")

    monkeypatch.setattr(Registry, "find_owners", fail)
    net = nn.Linear(4, 1)
    with pytest.raises(GuardError, match="ZeroDivisionError"), guard(net, allow=ALL):
        train(net)
