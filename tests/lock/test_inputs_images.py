"""Diagnoses of faults injected into real images, alone and in pairs, and of differences without a known cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pytest_evalmode.lock.causes import diagnose
from tests.lock import pictures
from tests.lock.pictures import (
    CLIP,
    HALF,
    IMAGENET,
    OWN,
    Array,
    jpeg,
    normalize,
    normalize_pixels,
    resize,
    to_unit_range,
)

MNIST = ((0.1307,), (0.3081,))
SIZE = 64


class Source:
    """Images as they are read, and the mean and std to normalize them with."""

    def __init__(self, images: Array, statistics: Any) -> None:
        self.images, self.statistics = images, statistics

    def normalized(self, images: Array | None = None) -> Array:
        return normalize(self.images if images is None else images, self.statistics)

    def twice(self) -> Array:
        return normalize_pixels(self.normalized(), self.statistics)


@pytest.fixture(scope="module", params=["photographs", "digits"])
def source(request: pytest.FixtureRequest) -> Source:
    if request.param == "digits":
        return Source(pictures.digits(), MNIST)
    return Source(resize(pictures.photographs(), SIZE), IMAGENET)


@pytest.fixture(scope="module")
def photographs() -> Source:
    return Source(resize(pictures.photographs(), SIZE), IMAGENET)


def bfloat16(a: Array) -> Array:
    return np.asarray(torch.from_numpy(a).bfloat16().float().numpy())


def shifted(a: Array) -> Array:
    """Shift images one row down and two columns to the right, and fill up with black."""
    out = np.zeros_like(a)
    out[:, :, 1:, 2:] = a[:, :, :-1, :-2]
    return out


def change_some(images: Array, change: Callable[[Array], Array]) -> Array:
    """Change every second image."""
    images = images.copy()
    images[1::2] = change(images[1::2])
    return images


def standardized_per_image(s: Source) -> Array:
    images = to_unit_range(s.images)
    axes = (1, 2, 3)
    return np.asarray((images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True))


def jittered(s: Source) -> Array:
    factors = np.random.default_rng(0).uniform(0.6, 1.4, (len(s.images), 1, 1, 1))
    return np.asarray(to_unit_range(s.images) * factors, np.float32)


Fault = tuple[set[str], Callable[[Source], tuple[Array, Array]]]
FAULTS: dict[str, Fault] = {
    "not normalized": ({"not normalised"}, lambda s: (s.normalized(), to_unit_range(s.images))),
    "not normalized, 0..255": ({"not normalised"}, lambda s: (s.normalized(), to_unit_range(s.images) * 255)),
    "normalized, before not": ({"normalised"}, lambda s: (to_unit_range(s.images), s.normalized())),
    "normalized twice": ({"normalised twice"}, lambda s: (s.normalized(), s.twice())),
    "other known statistics": ({"other statistics"}, lambda s: (s.normalized(), normalize(s.images, HALF))),
    "other unknown statistics": (
        {"other statistics"},
        lambda s: (s.normalized(), normalize(s.images, ((0.4, 0.41, 0.43), (0.21, 0.25, 0.27)))),
    ),
    "0..255 for 0..1": ({"range"}, lambda s: (to_unit_range(s.images), to_unit_range(s.images) * 255)),
    "bytes for 0..1": ({"range"}, lambda s: (to_unit_range(s.images), s.images.transpose(0, 3, 1, 2))),
    "0..1 for bytes": ({"range"}, lambda s: (s.images.transpose(0, 3, 1, 2), to_unit_range(s.images))),
    "not divided by 255": ({"range"}, lambda s: (s.normalized(), normalize(s.images, s.statistics, divisor=1))),
    "divided by 255 twice": ({"range"}, lambda s: (to_unit_range(s.images), to_unit_range(s.images) / 255)),
    "inverted": ({"inverted"}, lambda s: (to_unit_range(s.images), 1 - to_unit_range(s.images))),
    "black": ({"constant"}, lambda s: (s.normalized(), np.zeros_like(s.normalized()))),
    "gamma": ({"curve"}, lambda s: (to_unit_range(s.images), to_unit_range(s.images) ** np.float32(2.2))),
    "layout": ({"layout"}, lambda s: (s.normalized(), s.normalized().transpose(0, 2, 3, 1))),
    "float64": ({"dtype"}, lambda s: (s.normalized(), s.normalized().astype(np.float64))),
    "float16": ({"rounding"}, lambda s: (s.normalized(), s.normalized().astype(np.float16))),
    "bfloat16": ({"rounding"}, lambda s: (s.normalized(), bfloat16(s.normalized()))),
    "reversed": ({"reordered"}, lambda s: (s.normalized(), s.normalized()[::-1])),
    "dropped": ({"dropped"}, lambda s: (s.normalized(), s.normalized()[1:])),
    "repeated": ({"repeated"}, lambda s: (s.normalized(), s.normalized()[[0, *range(len(s.images))]])),
    "shifted": ({"shift"}, lambda s: (s.normalized(), shifted(s.normalized()))),
    "flipped": ({"flip"}, lambda s: (s.normalized(), s.normalized()[..., ::-1])),
    "upside down": ({"flip"}, lambda s: (s.normalized(), s.normalized()[..., ::-1, :])),
    "rotated": ({"rotation"}, lambda s: (s.normalized(), np.rot90(s.normalized(), 1, (2, 3)))),
    "JPEG": ({"jpeg"}, lambda s: (s.normalized(), s.normalized(jpeg(s.images)))),
    "JPEG, statistics of the user's own": (
        {"jpeg"},
        lambda s: (normalize(s.images, OWN), normalize(jpeg(s.images), OWN)),
    ),
    "JPEG of high quality": ({"jpeg"}, lambda s: (s.images, jpeg(s.images, 95))),
    "JPEG of low quality": ({"jpeg"}, lambda s: (s.images, jpeg(s.images, 30))),
    "video range": ({"range"}, lambda s: (s.images, (16 + s.images * (219 / 255)).round().astype(np.uint8))),
    "some flipped": ({"flip"}, lambda s: (s.normalized(), change_some(s.normalized(), lambda x: x[..., ::-1]))),
    "some shifted": ({"shift"}, lambda s: (s.normalized(), change_some(s.normalized(), shifted))),
    "normalized per image": ({"standardised"}, lambda s: (to_unit_range(s.images), standardized_per_image(s))),
    "brightness changed per image": ({"augmented"}, lambda s: (to_unit_range(s.images), jittered(s))),
    # Pairs
    "flipped, not normalized": (
        {"flip", "not normalised"},
        lambda s: (s.normalized(), to_unit_range(s.images[:, :, ::-1])),
    ),
    "layout, not normalized": (
        {"layout", "not normalised"},
        lambda s: (s.normalized(), to_unit_range(s.images).transpose(0, 2, 3, 1)),
    ),
    "twice, float16": ({"normalised twice", "rounding"}, lambda s: (s.normalized(), s.twice().astype(np.float16))),
    "not normalized, bfloat16": (
        {"not normalised", "rounding"},
        lambda s: (s.normalized(), bfloat16(to_unit_range(s.images))),
    ),
    "shifted, 0..255": (
        {"shift", "range"},
        lambda s: (to_unit_range(s.images), shifted(to_unit_range(s.images)) * 255),
    ),
    "JPEG, other statistics": (
        {"jpeg", "other statistics"},
        lambda s: (s.normalized(), normalize(jpeg(s.images), HALF)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gets_its_diagnosis(source: Source, fault: str) -> None:
    kinds, inject = FAULTS[fault]
    was, now = inject(source)
    diagnosis = diagnose(was, np.ascontiguousarray(now))
    assert diagnosis is not None
    assert set(diagnosis.kinds) == kinds, diagnosis.headline


def sources() -> Array:
    return pictures.photographs()


def bicubic() -> Array:
    return resize(sources(), SIZE, Image.Resampling.BICUBIC)


def plain() -> Array:
    return pictures.resize_without_antialiasing(sources(), SIZE)


def blurred(images: Array) -> Array:
    return pictures.map_images(images, lambda image: image.filter(ImageFilter.GaussianBlur(1)))


def sharpened(images: Array) -> Array:
    return pictures.map_images(images, lambda image: image.filter(ImageFilter.SHARPEN))


def caffe(images: Array) -> Array:
    return normalize(images[..., ::-1], ((103.939, 116.779, 123.68), (1, 1, 1)), divisor=1)


def to_grayscale(images: Array) -> Array:
    return np.repeat(pictures.map_images(images, lambda image: image.convert("L")), 3, axis=3)


# Faults that need color images or enough detail.
PHOTOGRAPHS: dict[str, Fault] = {
    "read as BGR": ({"channels"}, lambda s: (s.normalized(), s.normalized(s.images[..., ::-1]))),
    "channels swapped after normalization": ({"channels"}, lambda s: (s.normalized(), s.normalized()[:, ::-1])),
    "one image": ({"channels"}, lambda s: (s.images[0], s.images[0][..., ::-1])),
    "one image, flipped": ({"flip"}, lambda s: (s.images[0], s.images[0][::-1])),
    "grayscale": ({"grey"}, lambda s: (s.normalized(), s.normalized(to_grayscale(s.images)))),
    "Caffe": ({"channels", "other statistics"}, lambda s: (s.normalized(), caffe(s.images))),
    "view instead of permute": ({"shape"}, lambda s: (s.normalized(), s.normalized().reshape(2, SIZE, SIZE, 3))),
    "BGR and CLIP": (
        {"channels", "other statistics"},
        lambda s: (s.normalized(), normalize(s.images[..., ::-1], CLIP)),
    ),
    "BGR and layout": (
        {"channels", "layout"},
        lambda s: (s.normalized(), s.normalized(s.images[..., ::-1]).transpose(0, 2, 3, 1)),
    ),
    "JPEG 4:4:4": ({"jpeg"}, lambda s: (s.images, jpeg(s.images, 88, subsampling=0))),
    "darker, then normalized": ({"brightness"}, lambda s: (s.normalized(), s.normalized(scaled(s.images, 0.7, 0)))),
    "limited range, then normalized": (
        {"range"},
        lambda s: (s.normalized(), s.normalized(scaled(s.images, 219 / 255, 16))),
    ),
    "contrast": ({"brightness"}, lambda s: (s.images, scaled(s.images, 1.3, -40))),
}


def cropped(images: Array) -> Array:
    return np.asarray(images[:, 101:325, 203:427])


def scaled(images: Array, factor: float, shift: float) -> Array:
    return np.asarray((images * factor + shift).round().clip(0, 255), np.uint8)


@pytest.mark.parametrize("fault", PHOTOGRAPHS)
def test_a_fault_of_photographs_gets_its_diagnosis(photographs: Source, fault: str) -> None:
    kinds, inject = PHOTOGRAPHS[fault]
    was, now = inject(photographs)
    diagnosis = diagnose(was, np.ascontiguousarray(now))
    assert diagnosis is not None
    assert set(diagnosis.kinds) == kinds, diagnosis.headline


def noise(a: Array, size: float) -> Array:
    return np.asarray(a + np.random.default_rng(0).normal(0, size, a.shape), a.dtype)


def spots(images: Array) -> Array:
    return np.where(np.random.default_rng(0).random(images.shape) < 0.01, np.uint8(255), images)


def spoil_first(images: Array) -> Array:
    return np.concatenate([spots(images[:1]), images[1:]])


# Differences without a known cause, some of which look like one.
UNEXPLAINED: dict[str, Callable[[Source], tuple[Array, Array]]] = {
    "noise": lambda s: (s.normalized(), noise(s.normalized(), 0.05)),
    "much noise": lambda s: (s.normalized(), noise(s.normalized(), 1)),
    "noise in levels": lambda s: (s.images, np.clip(noise(s.images.astype(float), 4), 0, 255).astype(np.uint8)),
    "less than a level": lambda s: (to_unit_range(s.images), noise(to_unit_range(s.images), 0.0005)),
    "one flipped, one with spots": lambda s: (s.images, spoil_first(change_some(s.images, lambda x: x[:, :, ::-1]))),
    "spots": lambda s: (s.images, spots(s.images)),
    "spots, own statistics": lambda s: (normalize(s.images, OWN), normalize(spots(s.images), OWN)),
    "one pixel": lambda s: (s.images, np.where(np.arange(s.images.size).reshape(s.images.shape) == 99, 7, s.images)),
    "pixels shuffled": lambda s: (
        s.images,
        np.random.default_rng(0).permutation(s.images.ravel()).reshape(s.images.shape),
    ),
}
# What cannot be repeated, because the images before it are not stored.
UNEXPLAINED_PHOTOGRAPHS: dict[str, Callable[[Source], tuple[Array, Array]]] = {
    "blurred": lambda s: (s.images, blurred(s.images)),
    "sharpened": lambda s: (s.images, sharpened(s.images)),
    "JPEG twice": lambda s: (s.images, jpeg(jpeg(s.images, 90), 60)),
    "JPEG, then cropped": lambda s: (cropped(sources()), cropped(jpeg(sources()))),
    "nearest": lambda s: (s.images, resize(sources(), SIZE, Image.Resampling.NEAREST)),
    "bicubic, not normalized": lambda s: (s.normalized(), to_unit_range(bicubic())),
    "no antialiasing": lambda s: (s.normalized(), s.normalized(plain())),
    "rotated by 3 degrees": lambda s: (s.images, pictures.map_images(s.images, lambda image: image.rotate(3))),
}


@pytest.mark.parametrize("fault", UNEXPLAINED_PHOTOGRAPHS)
def test_what_cannot_be_repeated_is_not_recognized(photographs: Source, fault: str) -> None:
    was, now = UNEXPLAINED_PHOTOGRAPHS[fault](photographs)
    diagnosis = diagnose(was, now)
    assert diagnosis is not None
    assert diagnosis.kinds == (), diagnosis.headline


@pytest.mark.parametrize("fault", UNEXPLAINED)
def test_a_difference_without_a_known_cause_is_not_recognized(source: Source, fault: str) -> None:
    was, now = UNEXPLAINED[fault](source)
    diagnosis = diagnose(was, np.asarray(now, was.dtype))
    assert diagnosis is not None
    assert diagnosis.kinds == (), diagnosis.headline
    assert "cause not recognized" in diagnosis.headline
    assert diagnosis.details.keys() >= {"where", "max", "share"}


def test_headlines_use_common_terms() -> None:
    s = Source(pictures.digits(), MNIST)
    diagnosis = diagnose(s.normalized(), s.twice())
    assert diagnosis is not None
    assert diagnosis.headline == "images were normalized twice (MNIST mean and std)"
    diagnosis = diagnose(s.normalized(), to_unit_range(s.images[:, :, ::-1]))
    assert diagnosis is not None
    assert diagnosis.headline == "images were flipped left to right and not normalized (MNIST mean and std)"


def test_fitted_mean_and_std_are_reported(photographs: Source) -> None:
    mean, std = (0.4, 0.41, 0.43), (0.21, 0.25, 0.27)
    diagnosis = diagnose(photographs.normalized(), normalize(photographs.images, (mean, std)))
    assert diagnosis is not None
    assert diagnosis.headline == (
        "images were normalized with other statistics (mean (0.4, 0.41, 0.43), std (0.21, 0.25, 0.27), not ImageNet)"
    )


def test_the_quality_of_a_jpeg_is_reported(photographs: Source) -> None:
    diagnosis = diagnose(photographs.images, jpeg(photographs.images, 60))
    assert diagnosis is not None
    assert diagnosis.headline.startswith("images were re-encoded as JPEG (quality 60; PSNR ")
