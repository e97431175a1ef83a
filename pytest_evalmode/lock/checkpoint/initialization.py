"""Whether a tensor is still what a module was born with: zeros, ones, or drawn as torch's modules draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FEWEST = 64
"""Values that it takes to recognise a distribution."""


def find_initialization(tensor: Tensor) -> str | None:
    """The default initialisation that a tensor's values look like, in words; None if they look like none.

    The caller is `undisturbed`.
    """
    if tensor.is_quantized or tensor.is_complex() or not tensor.numel():
        return None
    values = tensor.detach().reshape(-1)
    for value, words in ((0, "all zeros"), (1, "all ones")):
        if bool((values == value).all()):
            return words
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() < _FEWEST:
        return None
    values = values.to(torch.float64)
    std, most = float(values.std()), float(values.abs().max())
    if std == 0 or not math.isfinite(std):
        return None
    # Of n values, mean, std and kurtosis stray by about so much.
    stray = 4 / math.sqrt(tensor.numel())
    if abs(float(values.mean())) > stray * std:
        return None
    kurtosis = float(((values - values.mean()) / std).pow(4).mean())
    flat = abs(kurtosis - 1.8) < 2 * stray + 0.02 and most < 1.75 * std * (1 + stray)
    normal = abs(kurtosis - 3) < 6 * stray + 0.05
    for name, expected in _UNIFORM.items() if flat else ():
        if any(abs(std * math.sqrt(3) / bound - 1) < stray / 2 + 0.01 for bound in expected(tensor.shape)):
            return name
    for name, expected in _NORMAL.items() if normal else ():
        if any(abs(std / width - 1) < stray + 0.01 for width in expected(tensor.shape)):
            return name
    return None


def _fans(shape: torch.Size) -> tuple[int, int]:
    size = math.prod(shape[2:])
    return shape[1] * size, shape[0] * size


def _torch_default(shape: torch.Size) -> list[float]:
    return [1 / math.sqrt(_fans(shape)[0])] if len(shape) > 1 else []


def _xavier(shape: torch.Size) -> list[float]:
    return [math.sqrt(6 / sum(_fans(shape)))] if len(shape) > 1 else []


def _he(shape: torch.Size) -> list[float]:
    return [math.sqrt(2 / fan) for fan in _fans(shape)] if len(shape) > 1 else []


_UNIFORM = {"torch's uniform default for a layer of its size": _torch_default, "Xavier's uniform": _xavier}
_NORMAL = {
    "normal, std 1": lambda shape: [1.0],
    "normal, std 0.02": lambda shape: [0.02],
    "He's normal": _he,
}
