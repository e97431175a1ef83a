"""Changes that users reported, in which an earlier version named a wrong cause, or none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_evalmode.lock.causes import diagnose
from tests.lock import pictures
from tests.lock.pictures import Array
from tests.lock.test_harmless_variations import changes, inputs, model
from tests.lock.test_inputs_score import NONE, compare, levels, photographs

IDS = [[1, 11, 12, 13, 14, 15], [1, 21, 22, 23], [1, 31, 32, 33, 34]]
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
POSITIVE = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) * 30
IMAGES = torch.rand(21, 3, 4, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(21) % 5
WINDOWS = torch.randn(12, 24, 5, generator=torch.Generator().manual_seed(0)).cumsum(1) * torch.tensor(
    [1, 10, 0.1, 3, 50]
)


def masked(*places: tuple[int, int], last: bool = False) -> Tensor:
    mask = MASK.clone()
    for place in places:
        mask[place] = 0
    if last:
        mask[:, -1] = 0
    return mask


def standardized(x: Tensor, of: Tensor) -> Tensor:
    return (x - of.mean((0, 1))) / of.std((0, 1))


def noise(x: Tensor, size: float) -> Tensor:
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[Any, Any, str]] = {
    "rounding of positive values is not the absolute value": (POSITIVE, noise(POSITIVE, 1e-6), "differ by rounding"),
    "a first token twice, in lists": (IDS, [[1, *row] for row in IDS], "given with id 1 added at the start"),
    "a last token lost, in lists": ([[*row, 2] for row in IDS], IDS, "given without id 2 at the end"),
    "cut lists": (IDS, [row[:4] for row in IDS], r"cut to 4 tokens at the end \(2 of 3 texts\)"),
    "a hole in a mask": (MASK, masked((0, 5)), "masked in 1 more place: 1 inside a text .*text 0, token 5"),
    "a hole, and the last token of each text": (MASK, masked((0, 5), last=True), "1 inside a text .*, 3 at an end"),
    "a batch filled up with the first images": (
        IMAGES,
        IMAGES[[*range(21), 0, 1, 2]],
        r"repeated \(3 extra, at the end",
    ),
    "a batch filled up with the last image": (IMAGES, IMAGES[[*range(21), 20, 20]], r"repeated \(2 extra, at the end"),
    "a batch of labels filled up": (CLASSES, CLASSES[[*range(21), 0, 1, 2]], r"repeated \(3 extra, at the end"),
    "the last batch of labels dropped": (CLASSES, CLASSES[:16], r"dropped \(5 of 21, at the end"),
    "other statistics of a series": (
        standardized(WINDOWS, WINDOWS),
        standardized(WINDOWS, WINDOWS * 1.3 + 2),
        "per channel: channel 0 multiplied by 0.769",
    ),
    "a series that is not standardized": (
        standardized(WINDOWS, WINDOWS),
        WINDOWS,
        "no longer standardized per channel",
    ),
    "time reversed": (standardized(WINDOWS, WINDOWS), standardized(WINDOWS, WINDOWS).flip(1), "reversed along axis 1"),
    "a threshold is not a scale": (
        (F.interpolate(IMAGES[:, :1], 8, mode="bilinear") * 16).round(),
        ((F.interpolate(IMAGES[:, :1], 8, mode="bilinear") * 16).round() > 8).float(),
        NONE,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_inputs(tmp_path: Path, case: str) -> None:
    was, now, words = CASES[case]
    (change,) = changes(tmp_path / "test_it.py", inputs(was), inputs(now))
    assert re.search(words, change.headline), change.headline


def denoised(x: Array) -> Array:
    """Set small wavelet coefficients to zero."""
    a, b, c, d = x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]
    low = (a + b + c + d) / 2
    h, v, g = (
        np.sign(p) * np.maximum(np.abs(p) - 4, 0)
        for p in ((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2)
    )
    out = np.zeros_like(x)
    out[:, ::2, ::2], out[:, 1::2, ::2] = (low + h + v + g) / 2, (low - h + v - g) / 2
    out[:, ::2, 1::2], out[:, 1::2, 1::2] = (low + h - v - g) / 2, (low - h - v + g) / 2
    return out


def shifted(fill: Callable[[Array, Array], Array]) -> Callable[[Array], Array]:
    """Return a function that shifts images by 3 px to the right, and fills the left edge."""

    def shift(x: Array) -> Array:
        out = np.roll(x, 3, 2)
        out[:, :, :3] = fill(x, out)[:, :, :3]
        return out

    return shift


LEVELS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "denoised": (lambda x: levels(x, denoised), NONE),
    "shifted, black at the edge": (shifted(lambda x, _: np.zeros_like(x)), "shifted by 0 px down and 3 px right"),
    "shifted, wrapped": (shifted(lambda _, out: out), NONE),
    # A shift explains only what overlaps.
    "shifted, other pixels at the edge": (shifted(lambda x, _: 255 - x), NONE),
    "a level of noise": (
        lambda x: np.clip(x + np.random.default_rng(0).integers(-1, 2, x.shape), 0, 255).astype(np.uint8),
        "differ by at most 1 level in 6.% of the values: rounding, or noise of its size; pass rtol and atol",
    ),
}


@pytest.mark.parametrize("case", LEVELS)
def test_photographs(case: str) -> None:
    change, words = LEVELS[case]
    x = photographs(64)
    diagnosis = compare(x, change(x))
    assert diagnosis is not None
    assert re.search(words, diagnosis.headline), diagnosis.headline
    assert bool(diagnosis.kinds) == words.startswith("shifted")


def test_a_shift_of_normalized_photographs_explains_black_edges() -> None:
    x = photographs(32)
    diagnosis = diagnose(pictures.normalize(x), pictures.normalize(LEVELS["shifted, black at the edge"][0](x)))
    assert diagnosis is not None
    assert diagnosis.kinds == ("shift",)


class Adapted(nn.Module):
    """A weight with a LoRA adapter beside it, which is merged or not."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = ((16, 16), (2, 16), (16, 2))
        self.weight, self.lora_A, self.lora_B = (nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.weight.data += merged * self.lora_B @ self.lora_A


def linear(dtype: torch.dtype, through: torch.dtype | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).to(dtype)
    for parameter in net.parameters() if through is not None else ():
        parameter.data = parameter.data.to(through).to(dtype)
    return net


MODELS: dict[str, tuple[nn.Module, nn.Module, str]] = {
    "an adapter that was taken out": (Adapted(True), Adapted(False), r"lora_B @ lora_A\) was taken out of weight"),
    "an adapter that was merged": (Adapted(False), Adapted(True), r"lora_B @ lora_A\) was merged into weight"),
    "float16 through bfloat16": (linear(torch.float16), linear(torch.float16, torch.bfloat16), "rounded to bfloat16"),
    "bfloat16 through float8": (
        linear(torch.bfloat16),
        linear(torch.bfloat16, torch.float8_e4m3fn),
        "rounded to float8",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(tmp_path: Path, case: str) -> None:
    was, now, words = MODELS[case]
    (change,) = changes(tmp_path / "test_it.py", model(was), model(now))
    assert re.search(words, change.headline), change.headline


def test_samples_of_a_model_that_were_changed_are_not_compared(tmp_path: Path) -> None:
    def spoil(lock: Any) -> None:
        for path in (tmp_path / "__evalmode__" / "models").glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        model(linear(torch.float32).double())(lock)

    (change,) = changes(tmp_path / "test_it.py", model(linear(torch.float32)), spoil)
    assert "there are no stored values to compare" in change.headline
    assert "are cut off, changed or from another commit" in change.finding
