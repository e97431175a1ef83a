"""What a page shows of inputs that are others: pictures side by side, and a histogram."""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_iris  # type: ignore[import-untyped]

from pytest_evalmode.lock.arrays.pictures import draw_pictures
from pytest_evalmode.report.page import render_page, render_panel
from tests.lock.pictures import digits, jpeg, normalize, photographs, resize
from tests.report.records import test as guarded
from tests.report.records import totals, violation

IMAGES = resize(photographs())
TABLE = load_iris().data


def drawn(uri: str) -> Any:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def found(was: Any, now: Any) -> dict[str, Any]:
    made = draw_pictures(was, now)
    assert made is not None
    assert json.loads(json.dumps(made)) == made
    return made


def test_the_first_image_that_differs_is_drawn_beside_what_it_was() -> None:
    made = found(digits(), np.concatenate([digits()[:3], digits()[3:, :, ::-1]]))
    assert made["sample"] == 3
    was, now, apart = (drawn(made[name]) for name in ("was", "now", "apart"))
    assert was.shape == (8, 8, 3)
    assert np.array_equal(was, now[:, ::-1])
    assert apart.max() == 255


def test_both_are_drawn_on_one_scale() -> None:
    made = found(normalize(IMAGES), normalize(IMAGES) / 10)
    assert np.ptp(drawn(made["now"])) < np.ptp(drawn(made["was"])) / 5


def test_pictures_are_small() -> None:
    made = found(normalize(IMAGES), normalize(jpeg(IMAGES)))
    assert max(drawn(made["was"]).shape) <= 160
    assert sum(map(len, map(str, made.values()))) < 300_000


def test_images_of_other_shapes_have_no_difference() -> None:
    assert "apart" not in found(IMAGES, IMAGES[:, :200])


def test_a_table_has_a_histogram_alone() -> None:
    made = found(TABLE, TABLE * 2)
    assert made.keys() == {"histogram"}
    assert len(made["histogram"]["was"]) == len(made["histogram"]["now"])
    assert (made["histogram"]["low"], made["histogram"]["high"]) == ("0.1", "15.8")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (np.array(["a"]), np.array(["b"])),
        (TABLE[:0], TABLE),
        (np.zeros(9), np.ones(9)),
        (np.full((2, 3), np.nan), np.zeros((2, 3))),
    ],
)
def test_there_is_nothing_to_look_at(was: Any, now: Any) -> None:
    assert draw_pictures(was, now) is None


def test_what_is_not_finite_is_left_out() -> None:
    made = found(normalize(IMAGES), np.where(normalize(IMAGES) > 2, np.inf, normalize(IMAGES)))
    assert made["histogram"]["high"] not in ("inf", "nan")
    assert drawn(made["now"]).shape == (160, 160, 3)


def test_without_pillow_there_are_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = jpeg(IMAGES)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert found(IMAGES, compressed).keys() == {"histogram"}


def test_a_page_and_a_panel_show_them() -> None:
    name = "<script>alert(1)</script>"
    shown = {"pictures": {name: {"batch": found(IMAGES, jpeg(IMAGES)), name: found(TABLE, TABLE * 2)}}}
    test = guarded("test_it", violation("inputs-changed", subjects=[name]), shown=shown)
    for made in (render_page([test], totals=totals([test]), mode="enforce", strict=False), render_panel(test)):
        assert made.count('<img src="data:image/png;base64,') == 3
        assert made.count("<svg") == 2
        assert name not in made
