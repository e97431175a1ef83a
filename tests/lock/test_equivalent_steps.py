"""Equivalent descriptions of a pipeline, and similar ones that are not equivalent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_evalmode.lock.preprocessing import describe, find_differences

Step = dict[str, Any]


def step(name: str, **fields: Any) -> Step:
    return {"step": name, **fields}


def steps(*each: Step, of: str = "Compose") -> Step:
    return step(of, transforms=list(each))


RESIZE = step("Resize", antialias=True, interpolation="InterpolationMode.BILINEAR", max_size=None, size=256)
CROP = step("CenterCrop", size=[224, 224])
NORMALIZE = step("Normalize", inplace=False, mean=[0.5], std=[0.25])
TO_TENSOR = step("ToTensor")
TO_IMAGE, TO_FLOAT = step("ToImage"), step("ToDtype", dtype="torch.float32", scale=True)
PRESET = step(
    "ImageClassification",
    antialias=True,
    crop_size=[224],
    interpolation="InterpolationMode.BILINEAR",
    mean=[0.5],
    resize_size=[256],
    std=[0.25],
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (steps(TO_TENSOR), steps(TO_IMAGE, TO_FLOAT)),
        (steps(TO_TENSOR), steps(step("MaybeToTensor"))),
        (steps(TO_TENSOR), steps(step("PILToTensor"), step("ConvertImageDtype", dtype="torch.float32"))),
        (steps(TO_TENSOR), steps(TO_TENSOR, step("ToPureTensor"), step("Identity"))),
        (steps(RESIZE, CROP), steps(RESIZE, CROP, of="Sequential")),
        (steps(RESIZE, CROP, TO_TENSOR), steps(steps(RESIZE, CROP), steps(TO_TENSOR))),
        (RESIZE, {**RESIZE, "size": [256]}),
        (RESIZE, {**RESIZE, "interpolation": "bilinear"}),
        (RESIZE, {**RESIZE, "interpolation": "Resampling.BILINEAR"}),
        (NORMALIZE, {**NORMALIZE, "mean": 0.5}),
        (PRESET, steps(RESIZE, CROP, TO_TENSOR, NORMALIZE)),
        ({"train": steps(TO_TENSOR), "eval": [TO_TENSOR]}, {"train": steps(TO_IMAGE, TO_FLOAT), "eval": [TO_TENSOR]}),
    ],
)
def test_equivalent_descriptions_do_not_differ(one: Step, other: Step) -> None:
    assert find_differences(one, other) == []
    assert find_differences(other, one) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (steps(TO_TENSOR), steps(TO_IMAGE, {**TO_FLOAT, "scale": False}), ["ToDtype.scale: True -> False"]),
        (
            steps(TO_TENSOR),
            steps(TO_IMAGE, {**TO_FLOAT, "dtype": "torch.float16"}),
            ["ToDtype.dtype: 'torch.float32' -> 'torch.float16'"],
        ),
        (steps(TO_TENSOR, NORMALIZE), steps(NORMALIZE), ["ToTensor: ToTensor() -> (absent)"]),
        (
            steps(RESIZE, CROP),
            steps(CROP, RESIZE, of="Sequential"),
            ["Compose: reordered: Resize, CenterCrop -> CenterCrop, Resize"],
        ),
        (RESIZE, {**RESIZE, "size": [256, 256]}, ["Resize.size: 256 -> (256, 256)"]),
        (
            RESIZE,
            {**RESIZE, "interpolation": "nearest"},
            ["Resize.interpolation: 'bilinear' -> 'nearest'"],
        ),
        (
            step("Lambda", lambd="f"),
            step("Lambda", lambd="f", types=["torch.Tensor"]),
            ["Lambda.types: (absent) -> 'torch.Tensor'"],
        ),
        (PRESET, steps(RESIZE, CROP, TO_TENSOR, {**NORMALIZE, "mean": [0.4]}), ["Normalize.mean: 0.5 -> 0.4"]),
        (PRESET, {**PRESET, "resize_size": [232]}, ["Resize.size: 256 -> 232"]),
        (step("Own", repr="Own(1)"), step("Own", repr="Own(2)"), ["Own.repr: 'Own(1)' -> 'Own(2)'"]),
        (
            step("Compose", transforms=[RESIZE], p=1.0),
            step("Compose", transforms=[RESIZE], p=0.5),
            ["Compose.p: 1.0 -> 0.5"],
        ),
    ],
)
def test_similar_descriptions_differ(one: Step, other: Step, expected: list[str]) -> None:
    assert find_differences(one, other) == expected


def test_a_float32_number_is_described_as_it_was_written() -> None:
    mean = [0.485, 0.456, 0.406]
    assert describe(torch.tensor(mean)) == describe(torch.tensor(mean).numpy()) == describe(mean) == mean
    assert describe(torch.tensor(mean).numpy()[0]) == 0.485
    assert describe(torch.tensor(mean) + 1e-5) != mean


@pytest.mark.parametrize("name", ["ToTensor", "Identity", "ImageClassification", "ConvertImageDtype"])
def test_a_users_class_with_a_known_name_is_compared(name: str) -> None:
    one, other = (steps(step(name, code={"3.11": {"__call__": digest}})) for digest in ("one", "other"))
    assert find_differences(one, other) == [f"{name}: its code changed (__call__)"]
    one, other = (steps(step(name, scale=scale)) for scale in (1, 2))
    assert find_differences(one, other) == [f"{name}.scale: 1 -> 2"]
