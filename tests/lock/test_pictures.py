"""The pictures and histogram of changed inputs in the HTML report."""

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
from tests.report.records import violation

IMAGES = resize(photographs())
TABLE = load_iris().data


def pixels(uri: str) -> Any:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def draw(locked: Any, current: Any) -> dict[str, Any]:
    drawn = draw_pictures(locked, current)
    assert drawn is not None
    assert json.loads(json.dumps(drawn)) == drawn
    return drawn


def test_the_first_image_that_differs_is_drawn() -> None:
    drawn = draw(digits(), np.concatenate([digits()[:3], digits()[3:, :, ::-1]]))
    assert drawn["sample"] == 3
    was, now, apart = (pixels(drawn[name]) for name in ("was", "now", "apart"))
    assert was.shape == (8, 8, 3)
    assert np.array_equal(was, now[:, ::-1])
    assert apart.max() == 255


def test_both_images_have_the_same_scale() -> None:
    drawn = draw(normalize(IMAGES), normalize(IMAGES) / 10)
    assert np.ptp(pixels(drawn["now"])) < np.ptp(pixels(drawn["was"])) / 5


def test_pictures_are_small() -> None:
    drawn = draw(normalize(IMAGES), normalize(jpeg(IMAGES)))
    assert max(pixels(drawn["was"]).shape) <= 160
    assert sum(map(len, map(str, drawn.values()))) < 300_000


def test_images_of_different_shapes_have_no_difference_image() -> None:
    assert "apart" not in draw(IMAGES, IMAGES[:, :200])


def test_a_table_has_only_a_histogram() -> None:
    drawn = draw(TABLE, TABLE * 2)
    assert drawn.keys() == {"histogram"}
    assert len(drawn["histogram"]["was"]) == len(drawn["histogram"]["now"])
    assert (drawn["histogram"]["low"], drawn["histogram"]["high"]) == ("0.1", "15.8")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (np.array(["a"]), np.array(["b"])),
        (TABLE[:0], TABLE),
        (np.zeros(9), np.ones(9)),
        (np.full((2, 3), np.nan), np.zeros((2, 3))),
    ],
)
def test_nothing_is_drawn(was: Any, now: Any) -> None:
    assert draw_pictures(was, now) is None


def test_values_that_are_not_finite_are_omitted() -> None:
    drawn = draw(normalize(IMAGES), np.where(normalize(IMAGES) > 2, np.inf, normalize(IMAGES)))
    assert drawn["histogram"]["high"] not in ("inf", "nan")
    assert pixels(drawn["now"]).shape == (160, 160, 3)


def test_without_pillow_there_are_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = jpeg(IMAGES)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert draw(IMAGES, compressed).keys() == {"histogram"}


def test_the_page_and_the_panel_show_the_pictures() -> None:
    name = "<script>alert(1)</script>"
    shown = {"pictures": {name: {"batch": draw(IMAGES, jpeg(IMAGES)), name: draw(TABLE, TABLE * 2)}}}
    test = guarded("test_it", violation("inputs-changed", subjects=[name]), shown=shown)
    for drawn in (render_page([test], mode="enforce", strict=False), render_panel(test)):
        assert drawn.count('<img src="data:image/png;base64,') == 3
        assert drawn.count("<svg") == 2
        assert name not in drawn
