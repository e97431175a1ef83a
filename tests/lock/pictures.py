"""Real images and their preprocessing in NumPy and Pillow; a fault changes one step."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits, load_sample_images  # type: ignore[import-untyped]

Array = npt.NDArray[Any]
__all__ = ["ImageEnhance", "ImageFilter"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OWN = ((0.305, 0.28, 0.31), (0.376, 0.35, 0.4))


@cache
def photographs() -> Array:
    """Return both photographs of scikit-learn: uint8, shape (2, 427, 640, 3)."""
    return np.stack(load_sample_images().images)


@cache
def digits(n: int = 24) -> Array:
    """Return handwritten digits: uint8, shape (n, 8, 8, 1)."""
    return np.asarray((load_digits().images[:n, :, :, None] * 255 / 16).round(), np.uint8)


def map_images(images: Array, change: Callable[[Image.Image], Image.Image]) -> Array:
    """Apply a function of Pillow images to each image: uint8, shape (samples, rows, columns, channels)."""
    changed = [np.asarray(change(Image.fromarray(image.squeeze()))) for image in images]
    return np.stack([image.reshape(*image.shape[:2], -1) for image in changed])


def resize(images: Array, size: int = 224, how: Image.Resampling = Image.Resampling.BILINEAR) -> Array:
    return map_images(images, lambda image: image.resize((size, size), how))


def resize_without_antialiasing(images: Array, size: int = 224) -> Array:
    """Interpolate between the four nearest pixels, even when downsizing, as OpenCV and `F.interpolate` do."""
    floats = images.astype(float)
    for axis in (1, 2):
        n = images.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, n - 1)
        floats = np.take(floats, low, axis) * (1 - part) + np.take(floats, high, axis) * part
    return np.asarray(floats.round(), np.uint8)


def jpeg(images: Array, quality: int = 75, subsampling: int = 2) -> Array:
    """Encode and decode images as JPEG."""

    def recompress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
        return Image.open(file)

    return map_images(images, recompress)


def webp(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=60)
    return Image.open(file)


def normalize(images: Array, statistics: Any = IMAGENET, divisor: float = 255) -> Array:
    """Apply `ToTensor` and `Normalize`: uint8 NHWC images to float32 NCHW."""
    pixels = images.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(divisor)
    return normalize_pixels(pixels, statistics)


def normalize_pixels(pixels: Array, statistics: Any = IMAGENET) -> Array:
    mean, std = (np.asarray(s, np.float32)[: pixels.shape[1]].reshape(-1, 1, 1) for s in statistics)
    return np.asarray((pixels - mean) / std)


def to_unit_range(images: Array) -> Array:
    return np.asarray(images.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255))
