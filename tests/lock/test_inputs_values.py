"""Diagnoses of tables, metrics and labels; harmless variations; and the arrays of nested batches."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_iris  # type: ignore[import-untyped]

from pytest_evalmode.lock.arrays.batch_arrays import arrays
from pytest_evalmode.lock.arrays.samples import Selection
from pytest_evalmode.lock.causes import diagnose
from pytest_evalmode.lock.causes.cause import Diagnosis
from pytest_evalmode.lock.causes.order import compare_order
from tests.lock import pictures
from tests.lock.pictures import Array, normalize

TABLE: Array = load_iris().data
LABELS: Array = load_digits().target[:64]


def column(factor: float) -> Array:
    table = TABLE.copy()
    table[:, 2] *= factor
    return table


def holes() -> Array:
    table = TABLE.copy()
    table.flat[::90] = np.nan
    return table


FAULTS: dict[str, tuple[Array, Array, str, str]] = {
    "thousand": (TABLE, TABLE * 1000, "unit", "multiplied by 1000"),
    "percent": (np.float64(0.873), np.float64(87.3), "unit", "multiplied by 100 (percent"),  # type: ignore[dict-item]
    "feet": (TABLE, TABLE * 0.3048, "unit", "multiplied by 0.3048"),
    "Fahrenheit": (TABLE, TABLE * 1.8 + 32, "unit", "multiplied by 1.8 and shifted by 32"),
    "Celsius": (TABLE, (TABLE - 32) / 1.8, "unit", "multiplied by 0.555556 and shifted by -17.7778"),
    "one column": (TABLE, column(25.4), "unit", "column 2 multiplied by 25.4"),
    "columns": (TABLE, TABLE[:, [1, 0, 2, 3]], "columns", "given with the columns in another order"),
    "standardized": (
        TABLE,
        (TABLE - TABLE.mean(0)) / TABLE.std(0),
        "standardised",
        "are now standardized per column; they were not before",
    ),
    "rows": (TABLE, TABLE[::-1], "reordered", "in reverse order"),
    "float16": (TABLE, TABLE.astype(np.float16), "rounding", "rounded to float16"),
    "float32": (TABLE, TABLE.astype(np.float32), "rounding", "rounded to float32"),
    "labels from 1": (LABELS, LABELS + 1, "unit", "shifted by 1"),
    "labels reversed": (LABELS, LABELS[::-1], "reordered", "in reverse order"),
    "labels dropped": (LABELS, LABELS[4:], "dropped", "dropped (4 of 64, first: sample 0)"),
    "labels int32": (LABELS, LABELS.astype(np.int32), "dtype", "int32, not int64"),
    "16 bits": (TABLE, TABLE / 32768, "unit", "multiplied by 1/32768 (16-bit levels)"),
    "log1p": (TABLE, np.log1p(TABLE), "function", "passed through the logarithm of 1 + x (log1p)"),
    "no sigmoid": (1 / (1 + np.exp(-TABLE)), TABLE, "function", "no longer passed through the sigmoid"),
    "no column": (TABLE, TABLE[:, 1:], "columns", "given without column 0"),
    "rolled": (TABLE, np.roll(TABLE, -1, 1), "columns", "given with the columns in another order"),
    "filled": (
        holes(),
        np.nan_to_num(holes(), nan=3.0),
        "missing",
        "replaced where they were NaN or infinite (7 places)",
    ),
    "missing": (TABLE, holes(), "missing", "set to NaN or infinity in 7 places"),
    "classes": (LABELS, (LABELS * 3) % 10, "classes", "renumbered in 8 classes (1 -> 3,"),
    "all zeros": (TABLE, TABLE * 0, "constant", "replaced by one constant value (0)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gets_its_diagnosis(fault: str) -> None:
    was, now, kind, words = FAULTS[fault]
    diagnosis = diagnose(was, now)
    assert diagnosis is not None
    assert diagnosis.kinds == (kind,)
    assert words in diagnosis.headline


def one_off(values: Array, amount: float) -> Array:
    values = values.copy()
    values[5] += amount
    return values


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (TABLE, one_off(TABLE, 1)),
        (TABLE, TABLE + np.random.default_rng(0).normal(0, 0.1, TABLE.shape)),
        (LABELS, one_off(LABELS, 1)),
        (np.float64(0.873), np.float64(0.81)),
        (np.array([0.1, 0.2]), np.array([0.1, 0.25])),
        (np.zeros((4, 5)), np.ones((4, 5))),
        (TABLE[:0], TABLE[:0, :2]),
    ],
)
def test_a_difference_without_a_known_cause_is_not_recognized(was: Array, now: Array) -> None:
    diagnosis = diagnose(was, now)
    assert diagnosis is not None
    assert diagnosis.kinds == ()
    assert "cause not recognized" in diagnosis.headline


def test_differing_samples_are_counted() -> None:
    diagnosis = diagnose(LABELS, one_off(LABELS, 1))
    assert diagnosis is not None
    assert diagnosis.headline.endswith("in 1 of 64 samples")
    assert diagnosis.details["samples"] == (5,)


def test_positions_are_those_among_all_samples_if_only_some_are_stored() -> None:
    stored, all_samples = [7, 30, 900], 3000
    was = np.arange(6.0).reshape(3, 2)
    now = was + np.array([[0.0, 0.0], [0.0, 9.5], [0.25, 0.0]])
    diagnosis = diagnose(was, now, indices=stored, counts=(all_samples, all_samples))
    assert diagnosis is not None
    assert diagnosis.headline.endswith("33% of the stored values, by at most 9.5 at (30, 1)")
    assert diagnosis.details["where"] == (30, 1)
    assert diagnosis.details["samples"] == (30, 900)


HARMLESS: dict[str, Callable[[Array], Array]] = {
    "a copy": np.copy,
    "not contiguous": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "Fortran order": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "through a tensor": lambda a: arrays(torch.from_numpy(a))["batch"],
    "with gradients": lambda a: arrays(torch.from_numpy(a).requires_grad_())["batch"],
    "as a list of samples": lambda a: arrays(list(a))["batch"],
    "in batches of other sizes": lambda a: np.concatenate([a[:3], a[3:]]),
    "a negated view": lambda a: arrays(torch._neg_view(torch.from_numpy(-a)))["batch"],
    "channels last": lambda a: arrays(torch.from_numpy(a).to(memory_format=torch.channels_last))["batch"],
    "minus zero": lambda a: np.where(a == 0, np.float32(-0.0), a),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_a_harmless_variation_is_not_a_difference(change: str) -> None:
    was = normalize(pictures.digits())
    was[0, 0, 0, :2] = 0
    assert diagnose(was, HARMLESS[change](was)) is None


def test_nan_equals_nan() -> None:
    holes = one_off(TABLE, np.nan)
    assert diagnose(holes, holes.copy()) is None
    diagnosis = diagnose(holes, holes * 1000)
    assert diagnosis is not None
    assert diagnosis.kinds == ("unit",)


def test_a_tolerance_applies_to_values_only() -> None:
    was = normalize(pictures.digits())
    now = was.astype(np.float64) + 1e-6
    assert diagnose(was, now, atol=1e-5) is None
    assert diagnose(was, now) is not None
    assert diagnose(was, now, atol=1e-7) is not None
    assert diagnose(was, was[:2], atol=1) is not None


def test_order_is_compared_by_keys() -> None:
    diagnosis = compare_order(["a", "b", "c"], ["c", "b", "b"])
    assert diagnosis is not None
    assert diagnosis.kinds == ("dropped", "repeated", "reordered")
    assert compare_order(["a", "b"], ["a", "b"]) is None
    assert compare_order(["a", "b"], ["a", "x"]) is None


@dataclass
class Example:
    image: Any
    label: int


def test_a_batch_becomes_named_arrays() -> None:
    image = Image.fromarray(pictures.digits(1)[0, :, :, 0])
    pair = namedtuple("pair", "left right")
    batch = {
        "pixels": torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16),
        "images": [image, image],
        "boxes": [torch.zeros(2, 4), torch.zeros(3, 4)],
        "texts": ["one", "three"],
        "labels": (1, 2),
        "nothing": None,
        "deep": [{"a": np.ones(2)}, {"a": np.ones(3)}],
        "pair": pair(1.0, "x"),
        "example": Example(image, 3),
    }
    named = arrays(batch)
    assert {name: each.shape for name, each in named.items()} == {
        "pixels": (2, 3, 4, 4),
        "images": (2, 8, 8),
        "boxes[0]": (2, 4),
        "boxes[1]": (3, 4),
        "texts": (2,),
        "labels": (2,),
        "deep[0].a": (2,),
        "deep[1].a": (3,),
        "pair.left": (),
        "pair.right": (),
        "example.image": (8, 8),
        "example.label": (),
    }
    assert named["pixels"].dtype == np.float32
    assert list(arrays(torch.ones(3))) == ["batch"]


@pytest.mark.parametrize("batch", [{"x": object()}, [object()], np.array([object()]), torch.empty(2, device="meta")])
def test_an_unsupported_batch_is_a_type_error(batch: object) -> None:
    with pytest.raises(TypeError, match=r"^inputs: "):
        arrays(batch)


def test_changes_of_a_cropped_image_are_recognized() -> None:
    images = pictures.photographs()[:1]

    def center(whole: Array) -> Array:
        selection = Selection(200_000)
        selection.add(whole)
        return selection.values

    was = center(images)
    assert was.nbytes <= 200_000
    turned = np.rot90(images, axes=(1, 2))
    for now, kind in ((images[:, :, ::-1], "flip"), (turned, "rotation"), (pictures.jpeg(images), "jpeg")):
        diagnosis = diagnose(was, center(now), shapes=(images.shape[1:], now.shape[1:]))
        assert diagnosis is not None
        assert diagnosis.kinds == (kind,)


def test_some_texts_with_other_characters_are_stored_beside_the_regular_samples() -> None:
    texts = np.array([f"text {i}" for i in range(1000)])
    texts[[333, 777]] = "Grüße", "naïve"
    selection = Selection(1 << 16)
    for batch in np.split(texts, 10):
        selection.add(batch)
    assert {333, 777} < {*selection.indices}
    assert len(selection.indices) <= 64


def test_empty_arrays_of_different_dtypes_differ() -> None:
    diagnosis = diagnose(np.zeros((0, 3)), np.zeros((0, 3), np.int8))
    assert diagnosis is not None
    assert diagnosis.headline == "values are empty and have dtype int8, not float64"


MANY: Array = np.random.default_rng(0).integers(0, 5, 20_000)


def of_many(was: Array, now: Array) -> Diagnosis:
    """Return the diagnosis of labels of which 64 and the first 4096 digests are stored, as the lock stores them."""
    indices = range(0, min(len(was), len(now)), len(was) // 64 + 1)
    diagnosis = diagnose(
        was[indices],
        now[indices],
        indices=indices,
        digests=(was[:4096].tolist(), now[:4096].tolist()),
        counts=(len(was), len(now)),
    )
    assert diagnosis is not None
    return diagnosis


def test_renumbered_labels_are_recognized_among_more_than_have_digests() -> None:
    assert of_many(MANY, (MANY * 3) % 5).kinds == ("classes",)
    some_others = np.where(np.arange(len(MANY)) % 1000 == 1, MANY, (MANY * 3) % 5)
    assert of_many(MANY, some_others).kinds == (), "the digests show that not all labels of a class changed"


def test_the_number_of_samples_is_reported_with_the_cause() -> None:
    table = np.random.default_rng(0).random((20_000, 3))
    assert of_many(table, 1000 * table[:19_000]).headline.endswith("(thousandths, or kilo); 19000 samples, not 20000")
    assert of_many(table, 1000 * table).headline.endswith("(thousandths, or kilo)")


def test_samples_of_another_dtype_are_not_named_reordered() -> None:
    """The bytes of the labels are the same, but not what they mean."""
    labels = np.arange(1, 9, dtype=np.int32)
    diagnosis = diagnose(labels, labels[::-1].copy().view(np.float32))
    assert diagnosis is not None
    assert diagnosis.kinds == ()
    texts = diagnose(np.array(["a", "bb", "c"]), np.array(["c", "bb", "a"], "U9"))
    assert texts is not None
    assert texts.kinds == ("reordered",)


@pytest.mark.parametrize("shape", [(4, 3), (12,)])
def test_integers_that_a_float_cannot_hold_differ(shape: tuple[int, ...]) -> None:
    was = (4 * np.arange(12) + (1 << 53)).reshape(shape)
    now = was.copy()
    now.flat[4] += 1
    diagnosis = diagnose(was, now)
    assert diagnosis is not None
    assert diagnosis.details["where"] == np.unravel_index(4, shape)
    assert "8% of the values" in diagnosis.headline
