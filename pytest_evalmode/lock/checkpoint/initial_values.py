"""The distributions from which torch's modules and common models draw their initial weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_RECURRENT = re.compile(r"(?:weight|bias)_[ih]h_l\d+(?:_reverse)?")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of initial values; `scale` is the bound of a uniform one, or the standard deviation."""

    words: str
    is_uniform: bool
    scale: float

    def fits(self, values: Tensor, slack: float = 1.0) -> bool:
        """Return whether a Kolmogorov-Smirnov test accepts that values were drawn from it; values are flat, in float64.

        A uniform distribution must also contain all of them, and they must reach its bounds. `slack` widens the limits.
        """
        count = len(values)
        if self.is_uniform:
            reached = float(values.abs().max()) / self.scale
            if not 1 - 8 / count <= reached <= 1.005:  # a cast to bfloat16 moves the bound by up to 0.4%
                return False
            expected = (values / self.scale).clamp(-1, 1) / 2 + 0.5
        else:
            std, kurtosis = float(values.std()), float((values - values.mean()).pow(4).mean() / values.var() ** 2)
            if abs(std / self.scale - 1) > slack * 3 / (2 * count) ** 0.5 + 0.01:
                return False
            if abs(kurtosis - 3) > slack * 15 / count**0.5 + 0.05:
                return False
            expected = torch.special.ndtr(values / self.scale)
        expected = expected.sort().values
        steps = torch.arange(count + 1, dtype=torch.float64) / count
        distance = torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max())
        return bool(distance < slack * 1.95 / count**0.5)


def possible_distributions(name: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> Iterator[Distribution]:
    """Yield the distributions from which a tensor's initial values may have been drawn.

    `name` is the last part of its name; the shape of the weight of the same module sets the scale of a bias.
    """
    default = "torch's default uniform for a layer of this size"
    if _RECURRENT.fullmatch(name):
        for gates in (4, 3, 1):  # LSTM, GRU, RNN
            yield Distribution(default, True, 1 / math.sqrt(shape[0] / gates))
    if len(weight) > 1 and 0 not in weight:
        fan_in, fan_out = (weight[i] * math.prod(weight[2:]) for i in (1, 0))
        yield Distribution(default, True, 1 / math.sqrt(fan_in))
        if len(shape) > 1:
            yield Distribution("Xavier uniform", True, math.sqrt(6 / (fan_in + fan_out)))
            yield Distribution("Xavier normal", False, math.sqrt(2 / (fan_in + fan_out)))
            for fan in (fan_in, fan_out):
                yield Distribution("Kaiming uniform", True, math.sqrt(6 / fan))
                yield Distribution("Kaiming normal", False, math.sqrt(2 / fan))
    if len(shape) > 1:
        for std in (1.0, 0.02, 0.01):
            yield Distribution(f"normal, std {std:g}", False, std)
