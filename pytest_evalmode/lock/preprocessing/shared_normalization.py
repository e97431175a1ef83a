"""What a training pipeline and one for evaluation have to do alike."""

from __future__ import annotations

import re
from typing import Any

from pytest_evalmode.lock.preprocessing.description import describe
from pytest_evalmode.lock.preprocessing.step_differences import find_differences, step_name

_NORMALISE = re.compile(r"normali[sz]e$|standardi[sz]e$", re.IGNORECASE)
_TO_UNIT = ("ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToFloat")  # pixels of 0..255 to 0..1
_FIELDS = (
    "mean std image_mean image_std do_normalize do_rescale rescale_factor do_convert_rgb max_pixel_value normalization "
    "sampling_rate feature_size num_mel_bins"
).split()
_INCIDENTAL = ("p", "inplace", "always_apply")


def assert_same_normalization(train: object, eval: object) -> None:
    """Fail unless two pipelines agree in what both have to do alike: to normalise, and to give values their range.

    Augmentation and sizes are theirs to choose.
    """
    found = find_differences(_shared(describe(train)), _shared(describe(eval)))
    if found:
        raise AssertionError("train and eval do not normalise alike (train -> eval): " + "; ".join(found))


def _shared(description: Any) -> list[Any]:
    """The steps of a description that normalise or change the range, in their order."""
    if isinstance(description, list):
        return [each for part in description for each in _shared(part)]
    if not isinstance(description, dict):
        return []
    if _to_unit(description):
        return [{"step": "scaled to 0..1"}]
    if _NORMALISE.search(step_name(description)):
        return [{key: each for key, each in description.items() if key not in _INCIDENTAL}]
    fields = {key: each for key, each in description.items() if key in _FIELDS}
    if fields.keys() & {"mean", "image_mean", "do_normalize"}:
        return [{"step": description.get("step", "normalization"), **fields}]
    return [each for key, part in description.items() if key != "step" for each in _shared(part)]


def _to_unit(step: dict[str, Any]) -> bool:
    """The spellings of one thing: `ToTensor()`, `ToDtype(float32, scale=True)`, and their kin."""
    name = step.get("step")
    return name in _TO_UNIT or (name == "ToDtype" and step.get("scale") is True)
