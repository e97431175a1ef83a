"""Recognition of initial values: zeros, ones, and the distributions of common default initializations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MIN_VALUES = 64
"""Number of values needed to recognize a distribution."""


def find_initialization(tensor: Tensor) -> str | None:
    """Return the name of the initialization that a tensor's values match, or None.

    Must be called inside `undisturbed()`.
    """
    if tensor.is_quantized or tensor.is_complex() or not tensor.numel():
        return None
    values = tensor.detach().reshape(-1)
    for value, words in ((0, "all zeros"), (1, "all ones")):
        if bool((values == value).all()):
            return words
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() < _MIN_VALUES:
        return None
    values = values.to(torch.float64)
    std, most = float(values.std()), float(values.abs().max())
    if std == 0 or not math.isfinite(std):
        return None
    # Kurtosis is 1.8 for a uniform and 3 for a normal distribution; the sampling error is about 1 / sqrt(n).
    error = 4 / math.sqrt(tensor.numel())
    if abs(float(values.mean())) > error * std:
        return None
    kurtosis = float(((values - values.mean()) / std).pow(4).mean())
    is_uniform = abs(kurtosis - 1.8) < 2 * error + 0.02 and most < 1.75 * std * (1 + error)
    is_normal = abs(kurtosis - 3) < 6 * error + 0.05
    for name, scales_of in _UNIFORM.items() if is_uniform else ():
        if any(abs(std * math.sqrt(3) / bound - 1) < error / 2 + 0.01 for bound in scales_of(tensor.shape)):
            return name
    for name, scales_of in _NORMAL.items() if is_normal else ():
        if any(abs(std / width - 1) < error + 0.01 for width in scales_of(tensor.shape)):
            return name
    return None


def _fans(shape: torch.Size) -> tuple[int, int]:
    size = math.prod(shape[2:])
    return shape[1] * size, shape[0] * size


def _torch_default(shape: torch.Size) -> list[float]:
    return [1 / math.sqrt(_fans(shape)[0])] if len(shape) > 1 else []


def _xavier(shape: torch.Size) -> list[float]:
    return [math.sqrt(6 / sum(_fans(shape)))] if len(shape) > 1 else []


def _kaiming(shape: torch.Size) -> list[float]:
    return [math.sqrt(2 / fan) for fan in _fans(shape)] if len(shape) > 1 else []


_UNIFORM = {"torch's default uniform for a layer of this size": _torch_default, "Xavier uniform": _xavier}
_NORMAL = {
    "normal, std 1": lambda shape: [1.0],
    "normal, std 0.02": lambda shape: [0.02],
    "Kaiming normal": _kaiming,
}
