"""How many faults in images, audio, text, tables and labels are named right, from what the lock stores.

None may be named wrong and none missed; a cause that cannot be proven is reported as not recognized.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image
from xxhash import xxh3_64_intdigest

from pytest_evalmode.lock.arrays.samples import Selection
from pytest_evalmode.lock.causes import Diagnosis, diagnose
from tests.lock import pictures, texts
from tests.lock.pictures import IMAGENET, Array, normalize_pixels
from tests.repetitions import PARTS, mark_repetitions, take_part

MAX_BYTES = 600_000
NONE = "cause not recognized"


def compare(was: Array, now: Array) -> Diagnosis | None:
    """Compare arrays as the lock does: from some of the samples, and the digests of all."""
    kept = Selection(MAX_BYTES)
    kept.add(was)
    other = Selection(MAX_BYTES, kept.indices)
    other.add(now)
    digests = [[xxh3_64_intdigest(np.ascontiguousarray(row).tobytes()) for row in each] for each in (was, now)]
    are_all = (len(kept.indices), len(other.indices)) == (len(was), len(now))
    n = None if are_all else len(other.indices)
    return diagnose(
        kept.values[:n],
        other.values,
        indices=kept.indices[:n],
        digests=(digests[0], digests[1]),
        counts=(len(was), len(now)),
        shapes=(was.shape[1:], now.shape[1:]),
    )


@cache
def photographs(size: int) -> Array:
    """Return 12 parts of photographs: uint8, shape (12, size, size, 3)."""
    parts = []
    for i in range(12):
        image = pictures.photographs()[i % 2]
        side = 140 + 20 * (i // 2)
        top, left = 9 * i, 30 * i
        parts.append(np.asarray(Image.fromarray(image[top : top + side, left : left + side]).resize((size, size))))
    return np.stack(parts)


CODINGS: dict[str, Callable[[Array], Array]] = {
    "uint8": lambda x: x.transpose(0, 3, 1, 2),
    "unit": lambda x: x.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255),
    "normalized": pictures.normalize,
}


def levels(x: Array, change: Callable[[Array], Array]) -> Array:
    return np.clip(np.round(change(x.astype(float))), 0, 255).astype(np.uint8)


def some(x: Array, change: Callable[[Array], Array], step: int = 3) -> Array:
    out = x.copy()
    out[::step] = change(x[::step])
    return out


def each(x: Array, change: Callable[[Array, Any], Array]) -> Array:
    generator = np.random.default_rng(0)
    return np.stack([change(image, generator) for image in x])


def moved(image: Array, generator: Any) -> Array:
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    top, left = generator.integers(0, 9, 2)
    return padded[top : top + len(image), left : left + image.shape[1]]


# Faults in the levels: what is done to uint8 images of shape (samples, rows, columns, channels); what is said.
LEVELS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "BGR": (lambda x: x[..., ::-1], "red and blue swapped"),
    "flipped": (lambda x: x[:, :, ::-1], "^images were flipped left to right$"),
    "upside down": (lambda x: x[:, ::-1], "flipped upside down"),
    "rotated": (lambda x: np.rot90(x, 1, (1, 2)), "rotated by 90 degrees to the left"),
    "transposed": (lambda x: x.transpose(0, 2, 1, 3), "transposed"),
    "gray": (lambda x: np.repeat(pictures.map_images(x, lambda i: i.convert("L")), 3, 3), "grayscale"),
    "JPEG 75": (lambda x: pictures.jpeg(x, 75), r"JPEG \(quality 75"),
    "JPEG 90": (lambda x: pictures.jpeg(x, 90), r"JPEG \(quality 90"),
    "JPEG 4:4:4": (lambda x: pictures.jpeg(x, 83, 0), r"JPEG \(quality 83"),
    "darker": (lambda x: levels(x, lambda v: v * 0.7), "darkened: levels multiplied by 0.7"),
    "brighter": (lambda x: levels(x, lambda v: v * 1.2), "brightened: levels multiplied by 1.2"),
    "limited range": (lambda x: levels(x, lambda v: 16 + v * 219 / 255), "limited video range"),
    "inverted": (lambda x: 255 - x, "inverted"),
    "gamma": (lambda x: levels(x, lambda v: 255 * (v / 255) ** 0.45), "gamma"),
    "contrast": (lambda x: levels(x, lambda v: 128 + 1.3 * (v - 128)), "brightness and contrast"),
    "16 levels": (lambda x: x & 0xF0, NONE),
    "a channel lost": (lambda x: x * np.array([1, 0, 1], np.uint8), NONE),
    "reversed": (lambda x: x[::-1], "in reverse order"),
    "dropped": (lambda x: x[:-2], r"dropped \(2 of 12, at the end\)"),
    "padded": (lambda x: np.concatenate([x, x[:4]]), r"repeated \(4 extra, at the end\)"),
    "shuffled": (lambda x: x[np.random.default_rng(1).permutation(12)], "reordered"),
    "random flips": (lambda x: some(x, lambda v: v[:, :, ::-1]), "flipped left to right.*in 4 of 12 samples"),
    "random crops": (lambda x: each(x, moved), "shifted differently per sample.*random augmentation"),
    "random brightness": (
        lambda x: each(x, lambda v, g: levels(v, lambda u: u * g.uniform(0.6, 0.95))),
        "differently per sample.*random augmentation",
    ),
    "blurred": (
        lambda x: pictures.map_images(x, lambda i: i.filter(pictures.ImageFilter.GaussianBlur(1))),
        NONE,
    ),
    "sharpened": (lambda x: pictures.map_images(x, lambda i: i.filter(pictures.ImageFilter.SHARPEN)), NONE),
    # What no cause in the table makes.
    "rotated by 5 degrees": (lambda x: pictures.map_images(x, lambda i: i.rotate(5)), NONE),
    "noise": (lambda x: levels(x, lambda v: v + np.random.default_rng(0).normal(0, 4, v.shape)), NONE),
    "a bar": (lambda x: x * (np.arange(x.shape[1])[:, None, None] >= 2).astype(np.uint8), NONE),
    "another size before": (
        lambda x: pictures.map_images(x, lambda i: i.resize((40, 40)).resize((x.shape[1], x.shape[1]))),
        NONE,
    ),
    "WebP": (lambda x: pictures.map_images(x, pictures.webp), NONE),
    "spots": (lambda x: np.where(np.random.default_rng(0).random(x.shape) < 0.01, 255, x).astype(np.uint8), NONE),
    "cut out": (
        lambda x: some(x, lambda v: v * (np.arange(v.shape[1]) < 20)[:, None].astype(np.uint8), 1),
        f"{NONE}|in the center",
    ),
    "saturation": (lambda x: pictures.map_images(x, lambda i: pictures.ImageEnhance.Color(i).enhance(1.5)), NONE),
}


def coded(statistics: Any, divisor: float = 255) -> Callable[[Array], Array]:
    return lambda x: pictures.normalize(x, statistics, divisor)


# Faults in the values of normalized images: from uint8 images to float32.
VALUES: dict[str, tuple[Callable[[Array], Array], str]] = {
    "not normalized": (CODINGS["unit"], r"not normalized \(ImageNet"),
    "neither": (CODINGS["uint8"], "neither normalized"),
    "twice": (lambda x: normalize_pixels(pictures.normalize(x)), r"normalized twice \(ImageNet"),
    "CLIP": (coded(pictures.CLIP), r"other statistics \(CLIP mean and std, not ImageNet"),
    "half": (coded(pictures.HALF), r"other statistics \(Inception"),
    "unknown": (coded(((0.4, 0.41, 0.43), (0.21, 0.25, 0.27))), r"other statistics \(mean \(0.4, 0.41, 0.43\)"),
    "not divided": (coded(IMAGENET, 1), "without division by 255"),
    "divided twice": (coded(IMAGENET, 255**2), "divided by 255 twice"),
    "NHWC": (lambda x: pictures.normalize(x).transpose(0, 2, 3, 1), "laid out as NHWC"),
    "float64": (lambda x: pictures.normalize(x).astype(float), "given as float64, not float32"),
    "float16": (lambda x: pictures.normalize(x).astype(np.float16), "rounded to float16"),
    "last bit": (lambda x: pictures.normalize(x) * np.float32(1 + 1e-7), "^images differ by rounding"),
    "noise of 1e-6": (lambda x: pictures.normalize(x) + noise(x, 1e-6), "^images differ by rounding"),
    "darker floats": (
        lambda x: normalize_pixels(CODINGS["unit"](x) * np.float32(0.7)),
        "darkened: levels multiplied by 0.7",
    ),
    "per image": (lambda x: standardized(CODINGS["unit"](x)), "standardized per sample|differently per sample"),
    "zeros": (lambda x: 0 * pictures.normalize(x), "one constant value"),
    "NaN": (lambda x: np.where(pictures.normalize(x) > 2, np.nan, pictures.normalize(x)).astype(np.float32), "NaN"),
    "noise of 0.05": (lambda x: pictures.normalize(x) + noise(x, 0.05), NONE),
    "one sample": (lambda x: some(pictures.normalize(x), lambda v: v + noise(v, 0.1), 12), f"{NONE}.*in 1 of 12"),
}


def noise(x: Array, size: float) -> Array:
    shape = x.shape if x.shape[1] == 3 else x.transpose(0, 3, 1, 2).shape
    return np.random.default_rng(0).normal(0, size, shape).astype(np.float32)


def standardized(x: Array, axes: tuple[int, ...] = (1, 2, 3)) -> Array:
    return np.asarray((x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-5), np.float32)


@cache
def waves() -> Array:
    """Return synthetic utterances that end in silence: float32, shape (9, 8000)."""
    t = np.arange(8000) / 8000
    out = np.stack([np.sin(6.28 * (200 + 100 * i) * t * (1 + t)) * (0.05 + t * (1 - t)) for i in range(9)])
    out += 0.002 * np.random.default_rng(0).normal(size=out.shape)
    out[:, -2000:] = 0
    return out.astype(np.float32)


def log_power(x: Array) -> Array:
    """Return the logarithm of the power spectrum: float32, shape (samples, bins, frames)."""
    frames = np.lib.stride_tricks.sliding_window_view(x, 126, axis=1)[:, ::80] * np.hanning(126)
    return np.log(np.abs(np.fft.rfft(frames)) ** 2 + 1e-6).transpose(0, 2, 1).astype(np.float32)


AUDIO: dict[str, tuple[Callable[[], tuple[Array, Array]], str]] = {
    "16 bits": (lambda: (waves(), waves() / 32768), "16-bit levels"),
    "as integers": (lambda: (waves(), waves() * 32768), "16-bit levels"),
    "polarity": (lambda: (waves(), -waves()), "the sign changed"),
    "gain": (lambda: (waves(), waves() * np.float32(0.5)), "multiplied by 0.5"),
    "reversed": (lambda: (waves(), waves()[:, ::-1]), "reversed along the last axis"),
    "rolled": (lambda: (waves(), np.roll(waves(), 3, 1)), NONE),
    "clipped": (lambda: (waves(), waves().clip(-0.1, 0.1)), "clipped to"),
    "noise": (lambda: (waves(), waves() + np.float32(0.01) * np.roll(waves(), 5)), NONE),
    "peak": (lambda: (waves(), waves() / np.abs(waves()).max(1, keepdims=True)), "differently per sample"),
    "log10": (lambda: (log_power(waves()), log_power(waves()) / np.float32(np.log(10))), "natural and decimal"),
    "decibels": (lambda: (log_power(waves()), log_power(waves()) * np.float32(10 / np.log(10))), "decibels"),
    "power": (lambda: (log_power(waves()), np.exp(log_power(waves()))), "the exponential"),
    "CMVN": (lambda: (log_power(waves()), standardized(log_power(waves()), (2,))), "standardized per row of each"),
    "per utterance": (lambda: (log_power(waves()), standardized(log_power(waves()), (1, 2))), "per sample"),
    "offset in the wave": (lambda: (log_power(waves()), log_power(waves() + np.float32(0.01))), NONE),
    "mel reversed": (lambda: (log_power(waves()), log_power(waves())[:, ::-1]), "reversed along axis 1|upside down"),
    "axes": (lambda: (log_power(waves()), log_power(waves()).transpose(0, 2, 1)), "transposed|laid out|shape"),
    "another hop": (lambda: (log_power(waves()), log_power(waves()[:, 7:])[:, :, :98]), NONE),
}


@cache
def table(n: int = 300) -> Array:
    generator = np.random.default_rng(0)
    return generator.random((n, 8)) * [10.0, 1, 100, 5, 3, 50, 7, 2] + 20


def column(factor: float) -> Array:
    out = table().copy()
    out[:, 2] *= factor
    return out


@cache
def series() -> Array:
    steps = np.random.default_rng(0).normal(size=(40, 24, 5)).cumsum(1)
    return steps * [1.0, 10, 0.1, 3, 50] + [0.0, 100, 1, -5, 1000]


def z(x: Array, of: Array) -> Array:
    axes = tuple(range(x.ndim - 1))
    return np.asarray((x - of.mean(axes)) / of.std(axes))


TABLES: dict[str, tuple[Callable[[], tuple[Array, Array]], str]] = {
    "standardized": (lambda: (table(), z(table(), table())), "standardized per column"),
    "not standardized": (lambda: (z(table(), table()), table()), "no longer standardized per column"),
    "another unit": (lambda: (table(), column(25.4)), "column 2 multiplied by 25.4"),
    "thousand": (lambda: (table(), table() * 1000), "1000"),
    "log1p": (lambda: (table(), np.log1p(table())), "log1p"),
    "columns": (lambda: (table(), table()[:, [1, 0, 2, 3, 4, 5, 6, 7]]), "columns in another order"),
    "column lost": (lambda: (table(), table()[:, 1:]), "without column 0"),
    "float32": (lambda: (table(), table().astype(np.float32)), "rounded to float32"),
    "rounding": (lambda: (table(), table() * (1 + 1e-14)), "differ by rounding"),
    "shuffled": (lambda: (table(), table()[np.random.default_rng(0).permutation(300)]), "reordered"),
    "dropped": (lambda: (table(), table()[:-44]), r"dropped \(44 of 300, at the end\)"),
    "noise": (lambda: (table(), table() + np.random.default_rng(0).normal(0, 0.1, (300, 8))), NONE),
    "one row": (lambda: (table(), some(table(), lambda v: v + 1.5, 300)), r"shifted by 1.5 \(in 1 of 300"),
    "series, other statistics": (
        lambda: (z(series(), series()), z(series(), series() * 1.3 + 2)),
        "no longer standardized per channel: channel 0",
    ),
    "series, not standardized": (lambda: (z(series(), series()), series()), "no longer standardized per channel"),
    "series, reversed": (lambda: (series(), series()[:, ::-1]), "reversed along axis 1|upside down"),
    "series, one channel": (lambda: (series(), series() * [1, 1, 1000, 1, 1]), "channel 2 multiplied by 1000"),
    "series, noise": (lambda: (series(), series() + np.random.default_rng(0).normal(size=(40, 24, 5))), NONE),
}

LABELS = np.random.default_rng(0).integers(0, 10, 1797)
MAP = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 5, (6, 8, 8)), 8, 1), 8, 2)


def changed(step: int) -> Array:
    return np.where(np.arange(1797) % step, LABELS, (LABELS + 1) % 10)


LABEL_FAULTS: dict[str, tuple[Callable[[], tuple[Array, Array]], str]] = {
    "int32": (lambda: (LABELS, LABELS.astype(np.int32)), "given as int32, not int64"),
    "from one": (lambda: (LABELS, LABELS + 1), "shifted by 1"),
    "renumbered": (lambda: (LABELS, (LABELS * 3) % 10), "renumbered in 8 classes"),
    "two exchanged": (lambda: (LABELS, np.array([0, 2, 1, *range(3, 10)])[LABELS]), "renumbered in 2 classes"),
    "two merged": (lambda: (LABELS, np.minimum(LABELS, 8)), r"renumbered in 1 class \(9 -> 8|clipped"),
    "20 differ": (lambda: (LABELS, changed(90)), f"{NONE}.*in 20 of 1797 samples"),
    "half differ": (lambda: (LABELS, changed(2)), f"{NONE}.*samples"),
    "reversed": (lambda: (LABELS, LABELS[::-1]), "reverse order"),
    "dropped": (lambda: (LABELS, LABELS[:1792]), r"dropped \(5 of 1797, at the end"),
    "padded": (lambda: (LABELS, np.r_[LABELS, LABELS[:3]]), r"repeated \(3 extra, at the end"),
    "map, ignored": (lambda: (MAP, np.where(MAP == 0, 255, MAP)), r"renumbered in 1 class \(0 -> 255"),
    "map, from zero": (lambda: (MAP, np.where(MAP == 0, 255, MAP - 1)), "renumbered in 5 classes"),
    "map, flipped": (lambda: (MAP, MAP[:, :, ::-1]), "flipped left to right|reversed along axis 2"),
}


def images() -> Iterator[tuple[str, Array, Array, str]]:
    for i, (name, (change, words)) in enumerate(LEVELS.items()):
        for j, (coding, apply) in enumerate(CODINGS.items()):
            size = (32, 64, 224)[(i + j) % 3]
            x = photographs(size)
            yield f"{name}, {coding}, {size}", apply(x), apply(change(x)), words
    for i, (name, (code, words)) in enumerate(VALUES.items()):
        for size in ((32, 64, 224)[i % 3], (64, 224, 32)[i % 3]):
            x = photographs(size)
            yield f"{name}, {size}", pictures.normalize(x), code(x), words


def others() -> Iterator[tuple[str, Array, Array, str]]:
    for kind, faults in (("audio", AUDIO), ("table", TABLES), ("labels", LABEL_FAULTS)):
        for name, (make, words) in faults.items():
            yield f"{kind}: {name}", *make(), words
    lines = texts.sentences()[:40]
    for name, change, words in TEXTS:
        yield f"text: {name}", np.array(lines), np.array([change(line) for line in lines]), words


TEXTS: list[tuple[str, Callable[[str], str], str]] = [
    ("lower", str.lower, "lowercased"),
    ("spaces", lambda text: text.replace(" ", "  "), "whitespace"),
    ("cut", lambda text: text[:30], "cut"),
    ("prompt", lambda text: f"query: {text}", "'query: ' before every text"),
    ("reversed", lambda text: text[::-1], NONE),
    ("other", lambda text: text.replace("e", "3"), NONE),
]


def score(faults: Iterable[tuple[str, Array, Array, str]]) -> tuple[Counter[str], list[str]]:
    """Return how many faults got each verdict, and which were named wrong or missed."""
    verdicts: Counter[str] = Counter()
    problems = []
    for name, was, now, words in faults:
        diagnosis = compare(was, np.ascontiguousarray(now))
        headline = "" if diagnosis is None else diagnosis.headline
        if diagnosis is None:
            verdict = "missed"
        elif re.search(words, headline):
            verdict = "not recognized" if words.startswith(NONE) else "named right"
        else:
            verdict = "not recognized" if NONE in headline else "named wrong"
        verdicts[verdict] += 1
        verdicts["nameable"] += not words.startswith(NONE)
        if verdict in ("missed", "named wrong") or (verdict == "not recognized" and words != NONE):
            problems.append(f"{verdict}: {name}: {headline}")
    return verdicts, problems


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_no_fault_of_images_is_missed_or_named_wrong(part: str) -> None:
    check(take_part(images(), part), least=28)


@pytest.mark.slow
def test_no_other_fault_is_missed_or_named_wrong() -> None:
    check(others(), least=50)


def check(faults: Iterable[tuple[str, Array, Array, str]], least: int) -> None:
    verdicts, problems = score(faults)
    print(verdicts, *problems, sep="\n")
    assert sum(verdicts.values()) - verdicts["nameable"] >= least
    assert verdicts["missed"] == verdicts["named wrong"] == 0, problems
    assert verdicts["named right"] >= 0.7 * verdicts["nameable"], problems


def random_change(x: Array, generator: Any) -> Array:
    """Change an array in a way that no cause in the table does."""
    kind = generator.integers(5)
    if kind == 0:
        return np.asarray(x + generator.normal(0, 0.1, x.shape) * x.std())
    if kind == 1:
        kernel = generator.normal(size=5)
        return np.asarray(np.apply_along_axis(np.convolve, -1, x, kernel, "same"))
    if kind == 2:
        bar = x.copy()
        bar[..., : 1 + x.shape[-1] // 8] = generator.normal()
        return bar
    if kind == 3:
        edited = x.copy()
        edited.flat[generator.integers(0, x.size, 1 + x.size // 20)] = x.max() * 1.5
        return edited
    return np.asarray(generator.permutation(x.ravel()).reshape(x.shape))


SHAPES = ((8, 3, 12, 12), (9, 16, 20), (40, 6), (6, 200), (5, 1, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("seed", mark_repetitions(range(6), [0]))
def test_random_changes_are_not_named(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(40):
        x = generator.normal(size=SHAPES[generator.integers(len(SHAPES))])
        if generator.random() < 0.4:
            x = np.cumsum(x, -1)
        if generator.random() < 0.4:
            x = (x - x.min()) / np.ptp(x)
        diagnosis = compare(x, random_change(x, generator))
        assert diagnosis is not None
        assert diagnosis.kinds == (), diagnosis.headline
