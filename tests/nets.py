"""What many tests need: a small net, and a guard that tells instead of raising."""

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
    """One of each: parameters, running statistics, dropout."""

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
    """Has no running statistics, to which vmap could not write."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.head(x))
        return out


class Noisy(Dropper):
    """Draws in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(x))


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def batch(*shape: int) -> Tensor:
    return torch.randn(shape or (8, 4))


@contextmanager
def watching(*models: nn.Module, **arguments: Any) -> Iterator[Guard]:
    """`guard()` that raises no verdict: ask its `violations` afterwards.  A failure of its own is raised."""
    with suppress(HygieneError), guard(*models, **arguments) as g:
        yield g


def rules(g: Guard) -> set[str]:
    """The rules that were broken."""
    return {violation.rule for violation in g.violations}


def only(g: Guard, rule: str) -> Violation:
    """The one violation that there is, of this rule."""
    assert rules(g) == {rule}
    (violation,) = g.violations
    return violation
