"""Non-persistent buffers: a forward that changes one carries state from one call to the next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pytest_evalmode import guard
from tests.nets import batch
from tests.strict import broken_rules, parametrize_cases


class Buffered(nn.Module):
    """A linear layer with a buffer that a forward may write to."""

    def __init__(self, write: Callable[[Buffered], object], *, persistent: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.write = write
        self.keys: Tensor
        self.register_buffer("keys", torch.zeros(4), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        h: Tensor = self.head(x) + sum(buffer.sum() for buffer in self.buffers())
        return h


def replace(model: Buffered) -> None:
    model.keys = torch.ones(2)


CHANGING: dict[str, Callable[[Buffered], object]] = {
    "in place": lambda model: model.keys.add_(1),
    "one element": lambda model: model.keys[2:3].fill_(1),
    "replaced": replace,
    "registered again": lambda model: model.register_buffer("keys", torch.ones(8), persistent=False),
    "gone": lambda model: model.register_buffer(model._buffers.popitem()[0] + "_now", torch.ones(4), persistent=False),
    "of another type": lambda model: model.register_buffer("keys", torch.zeros(4).char(), persistent=False),
}
STAYING: dict[str, Callable[[Buffered], object]] = {
    "read": lambda model: model.keys.sum(),
    "the same values": lambda model: model.keys.zero_(),
    "equal values": lambda model: model.register_buffer("keys", torch.zeros(4), persistent=False),
    "made when it is first needed": lambda model: model.register_buffer("more", torch.ones(8), persistent=False),
}


@parametrize_cases(CHANGING)
def test_a_changed_non_persistent_buffer_is_reported(case: Callable[[Buffered], object]) -> None:
    assert broken_rules(Buffered(case)) == {"buffer-mutated"}


@parametrize_cases(STAYING)
def test_an_unchanged_non_persistent_buffer_is_clean(case: Callable[[Buffered], object]) -> None:
    assert broken_rules(Buffered(case)) == set()


def test_an_added_persistent_buffer_breaks_state_mutated() -> None:
    assert broken_rules(Buffered(lambda model: model.register_buffer("more", torch.ones(8)))) == {"state-mutated"}


def test_only_persistent_buffers_are_checked_by_default() -> None:
    assert broken_rules(Buffered(CHANGING["in place"], persistent=True)) == {"state-mutated"}
    with guard(), torch.no_grad():
        Buffered(CHANGING["in place"]).eval()(batch())


def test_a_buffer_may_be_declared_mutable() -> None:
    with guard(strict=True, mutable="keys"), torch.no_grad():
        Buffered(CHANGING["in place"]).eval()(batch())
