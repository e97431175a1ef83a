"""What a callable makes of a fixed image, where nothing else tells what it does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pytest_evalmode.lock.inputs import arrays
from pytest_evalmode.lock.preprocessing.function_code import digest


def probe(transform: Callable[..., Any]) -> str:
    """A digest of what it makes of a Pillow image, a tensor or an array, the first of these that it takes."""
    for image in _images():
        try:
            made = [_made(transform(image)) for _ in range(2)]
        except Exception:  # it takes no such image; what it takes is found by trying
            continue
        if made[0] == made[1]:
            return made[0]
        raise TypeError(
            f"preprocessing: {type(transform).__name__} tells nothing of itself, and makes two things of one image: "
            "it draws at random; give it a __repr__ that names its parameters, or pass its parameters as a dict"
        )
    raise TypeError(
        f"preprocessing: {type(transform).__name__} tells nothing of itself, and takes neither a Pillow image nor "
        "a tensor nor an array; give it a __repr__ that names its parameters, or pass its parameters as a dict"
    )


def _made(batch: object) -> str:
    parts = (f"{name}{each.dtype}{each.shape}".encode() + each.tobytes() for name, each in arrays(batch).items())
    return digest(b"".join(parts))


def _images() -> Iterator[Any]:
    y, x, c = np.mgrid[:40, :56, :3]
    image = ((x * 37 + y * 101 + c * 53 + (x * y) % 29 * 7) % 256).astype(np.uint8)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None:
        yield pillow.fromarray(image)
    torch = sys.modules.get("torch")
    if torch is not None:
        yield torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255
    yield image
