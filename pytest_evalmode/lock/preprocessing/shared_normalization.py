"""`assert_same_normalization()`: training and evaluation must normalize inputs in the same way."""

from __future__ import annotations

import re
from typing import Any

from pytest_evalmode.lock.preprocessing.description import describe
from pytest_evalmode.lock.preprocessing.step_differences import find_differences, step_name

_NORMALIZE = re.compile(r"normali[sz]e$|standardi[sz]e$", re.IGNORECASE)
_TO_UNIT = ("ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToFloat")  # scale pixels from 0..255 to 0..1
_FIELDS = (
    "mean std image_mean image_std do_normalize do_rescale rescale_factor do_convert_rgb max_pixel_value normalization "
    "sampling_rate feature_size num_mel_bins"
).split()
_INCIDENTAL = ("p", "inplace", "always_apply")


def assert_same_normalization(train: object, eval: object) -> None:
    """Fail if two pipelines normalize inputs differently or scale them to different ranges.

    Augmentation and sizes may differ.

    Args:
        train: The pipeline used in training: transforms, a processor, or a dict of parameters.
        eval: The pipeline used in evaluation.

    Raises:
        AssertionError: If they differ. The message names each step or parameter.
    """
    differences = find_differences(_normalization_steps(describe(train)), _normalization_steps(describe(eval)))
    if differences:
        raise AssertionError("train and eval are normalized differently (train -> eval): " + "; ".join(differences))


def _normalization_steps(description: Any) -> list[Any]:
    """Return the steps of a description that normalize values or change their range, in order."""
    if isinstance(description, list):
        return [each for part in description for each in _normalization_steps(part)]
    if not isinstance(description, dict):
        return []
    if _scales_to_unit(description):
        return [{"step": "scaled to 0..1"}]
    if _NORMALIZE.search(step_name(description)):
        return [{key: each for key, each in description.items() if key not in _INCIDENTAL}]
    fields = {key: each for key, each in description.items() if key in _FIELDS}
    if fields.keys() & {"mean", "image_mean", "do_normalize"}:
        return [{"step": description.get("step", "normalization"), **fields}]
    return [each for key, part in description.items() if key != "step" for each in _normalization_steps(part)]


def _scales_to_unit(step: dict[str, Any]) -> bool:
    """Return whether a step is `ToTensor()`, `ToDtype(float32, scale=True)` or an equivalent."""
    name = step.get("step")
    return name in _TO_UNIT or (name == "ToDtype" and step.get("scale") is True)
