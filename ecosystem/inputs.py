"""Inputs that are the same in each run."""

from __future__ import annotations

import torch
from torch import Tensor


def rand(*shape: int) -> Tensor:
    """Return values in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def randn(*shape: int) -> Tensor:
    """Return values of a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens(*shape: int, count: int = 99) -> Tensor:
    """Return token ids from 3 on; lower ones are special tokens in many models.

    Args:
        shape: The shape of the result.
        count: The size of the vocabulary.
    """
    return torch.randint(3, count, shape, generator=torch.Generator().manual_seed(0))
