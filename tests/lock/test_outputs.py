"""What changed in outputs: causes, look-alikes that must not be named, and the score over both."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pytest_evalmode.lock.causes import describe_change


def logits(seed: int = 0, samples: int = 16, classes: int = 3) -> Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed)) * 2


def sequence() -> Tensor:
    return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))


Change = Callable[[Tensor], Tensor]
NAMED: dict[str, tuple[Change, str]] = {
    "multiplied": (lambda x: x * 2, "multiplied by 2"),
    "temperature": (lambda x: x / 1.7, "multiplied by 0.588235"),
    "negated": (lambda x: -x, r"multiplied by -1 \(the sign changed\)"),
    "percent": (lambda x: x * 100, r"multiplied by 100 \(percent"),
    "shifted": (lambda x: x + 1.5, "shifted by 1.5"),
    "not inverted": (lambda x: (x - 2.1) / 3.7, "multiplied by 0.27027 and shifted by -0.567568"),
    "per column": (
        lambda x: x * torch.arange(1.0, x.shape[-1] + 1) + torch.arange(float(x.shape[-1])),
        ".*(column|channel) 1 multiplied by 2 and shifted by 1; .* 2 multiplied by 3",
    ),
    "softmax": (lambda x: x.softmax(-1), r"probabilities \(softmax\) for logits"),
    "sigmoid": (lambda x: x.sigmoid(), r"passed through the sigmoid \(probabilities for logits\)"),
    "log-softmax": (lambda x: x.log_softmax(-1), "log-probabilities for logits"),
    "argmax": (lambda x: x.argmax(-1), "class indices"),
    "classes permuted": (
        lambda x: x.roll(1, -1)[..., [1, 0, *range(2, x.shape[-1])]],
        "(classes or columns in another order|given with the columns in another order)",
    ),
    "classes reversed": (lambda x: x.flip(-1), "classes or columns in reverse order"),
    "samples shuffled": (
        lambda x: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(5))],
        "samples in another order",
    ),
    "samples off by one": (lambda x: x.roll(1, 0), "samples in another order"),
    "absolute": (lambda x: x.abs(), "passed through the absolute value"),
    "clipped": (lambda x: x.relu(), r"clipped to 0\.\."),
    "normalized": (lambda x: F.normalize(x, dim=-1), "normalized to length 1"),
    "half": (lambda x: x.half().float(), "rounded to float16"),
    "bfloat16": (lambda x: x.bfloat16().float(), "rounded to bfloat16"),
    "not finite": (lambda x: x.masked_fill(x == x.max(), float("nan")), "1 of .* values is NaN or infinite"),
    "rounding": (lambda x: x * (1 + 1e-7), "differ by rounding"),
}
REVERSED: dict[str, tuple[Change, str]] = {
    "softmax": (lambda x: x.softmax(-1), r"logits for probabilities \(softmax\)"),
    "sigmoid": (lambda x: x.sigmoid(), "no longer passed through the sigmoid"),
    "log-softmax": (lambda x: x.log_softmax(-1), "logits for log-probabilities"),
    "normalized": (lambda x: F.normalize(x, dim=-1), "no longer normalized"),
    "absolute": (lambda x: x.abs(), "no longer passed through the absolute value"),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("make", [logits, sequence])
def test_a_change_is_named(name: str, make: Callable[[], Tensor]) -> None:
    change, words = NAMED[name]
    described = describe_change(make().numpy(), change(make()).numpy())
    assert described is not None
    assert re.match(words, described), described


@pytest.mark.parametrize("name", REVERSED)
def test_a_function_that_is_left_out_is_named(name: str) -> None:
    change, words = REVERSED[name]
    described = describe_change(change(logits()).numpy(), logits().numpy())
    assert described is not None
    assert re.match(words, described), described


def test_two_causes_that_are_equally_simple_are_both_named() -> None:
    half = logits(samples=16, classes=5).numpy()
    was = np.concatenate([half, -half[::-1]])
    described = describe_change(was, -was)
    assert described == "samples in reverse order or multiplied by -1 (the sign changed)"


def test_the_simpler_cause_is_named_alone() -> None:
    half = logits(samples=16, classes=5).numpy()
    assert describe_change(np.concatenate([half, -half]), np.concatenate([-half, half])) == (
        "multiplied by -1 (the sign changed)"
    )
    ramp = np.arange(20.0)[:, None]
    assert describe_change(ramp, ramp[::-1]) == "samples in reverse order"


def test_a_metric_in_percent_is_named() -> None:
    assert describe_change(0.992, 99.2) == "multiplied by 100 (percent, or centi)"
    assert describe_change(87.5, 0.875) == "multiplied by 1/100 (percent, or centi)"


@pytest.mark.parametrize(
    ("was", "now"), [(0.25, 0.5), (0.25, 0.75), (0.5, 0.25), (0.01, 1.0), (0.98, 0.97), (2.0, 4.0), (0.0, 0.0)]
)
def test_a_single_number_is_no_evidence(was: float, now: float) -> None:
    assert describe_change(was, now) is None


def test_text_and_equal_values_are_not_described() -> None:
    assert describe_change(np.array(["a"]), np.array(["b"])) is None
    assert describe_change(logits().numpy(), logits().numpy()) is None
    assert describe_change(np.array([0.0] * 9), np.array([-0.0] * 9)) is None


def test_unrelated_changes_are_not_named() -> None:
    rng = np.random.default_rng(0)
    named = []
    for i in range(400):
        was = rng.standard_normal((int(rng.integers(4, 40)), int(rng.integers(2, 9))))
        noise = rng.standard_normal(was.shape) * 10.0 ** -rng.integers(0, 4)
        now = [was + noise, np.where(rng.random(was.shape) < 0.1, 0, was), was * (1 + noise), noise, was**2 + noise][
            i % 5
        ]
        named += [described] if (described := describe_change(was, now)) else []
    assert named == []
