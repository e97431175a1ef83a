"""Helpers for the tests of the strict rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.nets import batch, rules, watching


class Transform(nn.Module):
    """A module without parameters."""

    def __init__(self, do: Callable[..., object]) -> None:
        super().__init__()
        self.do = do

    def forward(self, *args: Any, **kwargs: Any) -> object:
        return self.do(*args, **kwargs)


@torch.no_grad()
def broken_rules(model: nn.Module, *args: Any, **kwargs: Any) -> set[str]:
    """Return the rules that one forward of a model in eval mode breaks."""
    with watching(strict=True) as g:
        model.eval()(*(args or (batch(),)), **kwargs)
    return rules(g)


def parametrize_cases(table: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=table)
