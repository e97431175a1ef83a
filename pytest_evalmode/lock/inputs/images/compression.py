"""JPEG compression: the locked images are compressed again, with the quality and block grid that fit best.

JPEG rounds the frequencies of each block of 8x8 pixels to multiples of the steps in a quantization table.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step, psnr
from pytest_evalmode.lock.inputs.images.normalization import fit

_BLOCK = 8
# The quantization tables of the JPEG standard, from which libjpeg computes those of each quality.
_LUMA = np.array(
    """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
    72 92 95 98 112 100 103 99""".split(),
    float,
).reshape(_BLOCK, _BLOCK)
_CHROMA = np.full((_BLOCK, _BLOCK), 99.0)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
_MAX_RESIDUAL = 0.35  # share of the squared difference that may remain
_MAX_RESIDUAL_WITH_BLOCKS = 0.55  # if blocks are visible: an earlier compression cannot be reproduced
_VISIBLE = 0.05  # blocks are visible if their grid has this share more of zero frequencies than a typical grid
_PART = 32 * _BLOCK  # side of the part of an image that is used to find quality and grid


def find_jpeg(a: Array, b: Array) -> tuple[Step, Array] | None:
    """Find a JPEG compression that turns one set of images into another.

    Args:
        a: The locked images: float64 levels in 0..255, shape (samples, channels, rows, columns).
        b: The current images, likewise; values may lie between levels.

    Returns:
        The step and the compressed `a` (same shape, whole levels in 0..255), or None if JPEG explains too little.
    """
    if min(a.shape[2:]) < _BLOCK or a.shape != b.shape or a.shape[1] not in (1, 3):
        return None
    few = max(1, _PART**2 * 2 // (a.shape[2] * a.shape[3]))
    luma_a, luma_b = (_planes(each[:few, :, :_PART, :_PART])[:, :1] for each in (a, b))
    if float(np.mean((luma_a - luma_b) ** 2)) < 0.02:
        return None
    grid, is_visible = _find_grid(luma_b)
    quality = min(range(1, 101), key=lambda q: _luma_residual(luma_a, luma_b, q, grid))
    best, subsampled = min(
        (
            (_compress(a, quality, grid, subsampled), subsampled)
            for subsampled in ((True, False) if a.shape[1] == 3 else (False,))
        ),
        key=lambda attempt: float(np.mean((attempt[0] - b) ** 2)),
    )
    inner = np.s_[:, :, grid[0] :, grid[1] :]
    # Compression must explain much more than a scale and a shift do.
    residual, linear = (float(np.mean((each - b)[inner] ** 2)) for each in (best, fit(a, b)(a)))
    if residual > (_MAX_RESIDUAL_WITH_BLOCKS if is_visible and quality < 98 else _MAX_RESIDUAL) * linear:
        return None
    noise = psnr(a, b)
    details: dict[str, object] = {"quality": quality, "grid": grid, "psnr": noise, "unexplained": residual / linear}
    if subsampled:
        details["chroma"] = "4:2:0"
    where = "" if grid == (0, 0) else f" from row {grid[0]}, column {grid[1]}"
    words = f"re-encoded as JPEG (quality about {quality}, blocks of 8x8{where}; PSNR {noise:.1f} dB)"
    return Step("jpeg", words, details), best


def _find_grid(luma: Array) -> tuple[tuple[int, int], bool]:
    """Return the row and column where blocks begin (most frequencies are zero there), and whether they are visible."""
    if min(luma.shape[2:]) < 3 * _BLOCK:
        return (0, 0), False
    zeros = {}
    for y in range(_BLOCK):
        for x in range(_BLOCK):
            frequencies = _frequencies(luma[:1, :, y : y + 16 * _BLOCK, x : x + 16 * _BLOCK])
            zeros[(y, x)] = float((np.abs(frequencies) < 1).mean())
    best = max(zeros, key=lambda grid: zeros[grid])
    best = best if zeros[best] > zeros[(0, 0)] + 0.01 else (0, 0)
    return best, zeros[best] > float(np.median(list(zeros.values()))) + _VISIBLE


def _frequencies(a: Array) -> Array:
    """Return the frequencies of all complete blocks."""
    n, c, h, w = (*a.shape[:2], *(side // _BLOCK for side in a.shape[2:]))
    blocks = a[:, :, : h * _BLOCK, : w * _BLOCK].reshape(n, c, h, _BLOCK, w, _BLOCK).transpose(0, 1, 2, 4, 3, 5)
    return np.asarray(_cosines() @ (blocks - 128) @ _cosines().T)


def _luma_residual(a: Array, b: Array, quality: int, grid: tuple[int, int]) -> float:
    """Return the mean squared difference that remains after compressing the luma."""
    compressed = np.clip(_quantize(a, _table(_LUMA, quality), grid), 0, 255)
    return float(np.mean((compressed - b)[:, :, grid[0] :, grid[1] :] ** 2))


def _compress(a: Array, quality: int, grid: tuple[int, int], subsampled: bool) -> Array:
    """Return images as they are after encoding and decoding; `subsampled` halves the chroma (4:2:0)."""
    planes = np.round(_planes(a))
    luma = np.round(_quantize(planes[:, :1], _table(_LUMA, quality), grid))
    if a.shape[1] == 1:
        return np.asarray(np.clip(luma, 0, 255))
    table = _table(_CHROMA, quality)
    chroma = planes[:, 1:] + 128
    if subsampled:
        half = _quantize(_halve(chroma, grid), table, (0, 0))
        chroma = _double(half, chroma, grid)
    else:
        chroma = _quantize(chroma, table, grid)
    mixed = np.concatenate([luma, np.round(chroma) - 128], axis=1)
    rgb = np.einsum("ij,njhw->nihw", np.linalg.inv(_TO_YCC), mixed)
    return np.asarray(np.clip(np.round(rgb), 0, 255))


def _planes(a: Array) -> Array:
    return a if a.shape[1] == 1 else np.asarray(np.einsum("ij,njhw->nihw", _TO_YCC, a))


@cache
def _cosines() -> Array:
    n = np.arange(_BLOCK)
    basis = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis)


def _table(base: Array, quality: int) -> Array:
    """Return the quantization table that libjpeg computes for a quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.asarray(np.clip((base * scale + 50) // 100, 1, 255))


def _quantize(a: Array, table: Array, grid: tuple[int, int]) -> Array:
    """Round each block's frequencies to the table's steps, after repeating the edges to complete the last blocks."""
    top, left = (-g % _BLOCK for g in grid)
    height, width = a.shape[2] + top, a.shape[3] + left
    fill = ((0, 0), (0, 0), (top, -height % _BLOCK), (left, -width % _BLOCK))
    full = np.pad(a - 128, fill, mode="edge")
    n, c, h, w = full.shape
    blocks = full.reshape(n, c, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK).transpose(0, 1, 2, 4, 3, 5)
    cosines = _cosines()
    frequencies = cosines @ blocks @ cosines.T
    blocks = cosines.T @ (np.round(frequencies / table) * table) @ cosines
    full = blocks.transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)
    return np.asarray(full[:, :, top:height, left:width] + 128)


def _halve(chroma: Array, grid: tuple[int, int]) -> Array:
    cut = chroma[:, :, grid[0] % 2 :, grid[1] % 2 :]
    full = np.pad(cut, ((0, 0), (0, 0), (0, cut.shape[2] % 2), (0, cut.shape[3] % 2)), mode="edge")
    n, c, h, w = full.shape
    return np.asarray(full.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5)))


def _double(half: Array, like: Array, grid: tuple[int, int]) -> Array:
    """Upsample as decoders do: three parts of the nearer sample and one of the farther."""
    for axis in (2, 3):
        edge = [(0, 0)] * 4
        edge[axis] = (1, 1)
        wide = np.moveaxis(np.pad(half, edge, mode="edge"), axis, 0)
        pair = np.stack([0.75 * wide[1:-1] + 0.25 * wide[:-2], 0.75 * wide[1:-1] + 0.25 * wide[2:]], axis=1)
        half = np.moveaxis(pair.reshape(-1, *wide.shape[1:]), 0, axis)
    out = like.copy()
    top, left = (g % 2 for g in grid)
    out[:, :, top:, left:] = half[:, :, : like.shape[2] - top, : like.shape[3] - left]
    return out
