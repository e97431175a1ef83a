"""Small models, and a guard that does not raise on violations, for many tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_evalmode import Guard, HygieneError, guard
from pytest_evalmode.rules import Violation


class Net(nn.Module):
    """A model with parameters, running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.head(self.drop(self.bn(self.body(x))))
        return h


class Dropper(nn.Module):
    """A model with dropout and without running statistics, because vmap cannot write to those."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.head(x))
        return out


class Noisy(Dropper):
    """A model that draws random numbers in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(x))


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def batch(*shape: int) -> Tensor:
    return torch.randn(shape or (8, 4))


@contextmanager
def watching(*models: nn.Module, **arguments: Any) -> Iterator[Guard]:
    """Guard a block without raising on violations; read them from `violations`.  Errors of the guard are raised."""
    with suppress(HygieneError), guard(*models, **arguments) as g:
        yield g


def rules(g: Guard) -> set[str]:
    """Return the names of the broken rules."""
    return {violation.rule for violation in g.violations}


def only(g: Guard, rule: str) -> Violation:
    """Return the only violation, and assert that it is of this rule."""
    assert rules(g) == {rule}
    (violation,) = g.violations
    return violation
