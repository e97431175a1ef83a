"""Canonical forms of descriptions: `ToTensor()` equals `ToImage(), ToDtype(torch.float32, scale=True)`."""

from __future__ import annotations

from typing import Any

_TO_TENSOR: list[dict[str, Any]] = [{"step": "ToImage"}, {"step": "ToDtype", "dtype": "torch.float32", "scale": True}]
_EXPANDED: dict[str, list[dict[str, Any]]] = {
    "ToTensor": _TO_TENSOR,
    "MaybeToTensor": _TO_TENSOR,
    "PILToTensor": _TO_TENSOR[:1],
    "MaybePILToTensor": _TO_TENSOR[:1],
    "Identity": [],
    "ToPureTensor": [],
}
_PRESET = {"step", "antialias", "crop_size", "interpolation", "mean", "resize_size", "std"}


def canonical_forms(old: Any, new: Any) -> tuple[Any, Any]:
    """Return the canonical forms of two descriptions; a container of one step is that step if the other has none."""
    a, b = canonical_form(old), canonical_form(new)
    return (a, b) if _is_container(a) == _is_container(b) else (_unwrap(a), _unwrap(b))


def _unwrap(value: Any) -> Any:
    return value["transforms"][0] if _is_container(value) and len(value["transforms"]) == 1 else value


def _is_container(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("step") in ("Compose", "Sequential")
        and value.keys() == {"step", "transforms"}
        and isinstance(value["transforms"], list)
    )


def canonical_form(value: Any) -> Any:
    """Return the canonical form of a description: the same for equivalent pipelines."""
    if isinstance(value, list):
        return [step for each in value for step in _steps(canonical_form(each))]
    if not isinstance(value, dict):
        return value
    fields = {key: _field(key, each) for key, each in value.items()}
    if value.get("step") == "ImageClassification" and fields.keys() == _PRESET:  # torchvision's `weights.transforms()`
        return {"step": "Compose", "transforms": _classification(fields)}
    return {**fields, "step": "Compose"} if _is_container(fields) else fields


def _field(key: str, value: Any) -> Any:
    if key == "interpolation" and isinstance(value, str):
        return value.rpartition(".")[2].lower()  # a string, torchvision's constant or Pillow's
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict | list):
        return value[0]  # a size of [256] equals 256
    return canonical_form(value)


def _steps(step: Any) -> list[Any]:
    """Return what replaces a step: nothing, the step itself, equivalent steps, or the steps of a nested container."""
    if _is_container(step):
        return list(step["transforms"])
    if not isinstance(step, dict):
        return [step]
    if step.get("step") == "ConvertImageDtype" and step.keys() == {"step", "dtype"}:
        return [{**step, "step": "ToDtype", "scale": True}]
    # With code or fields, it may be a class of the user with that name.
    return _EXPANDED.get(str(step.get("step")), [step]) if len(step) == 1 else [step]


def _classification(fields: dict[str, Any]) -> list[Any]:
    size, crop = fields["resize_size"], fields["crop_size"]
    resized = {key: fields[key] for key in ("antialias", "interpolation")}
    return [
        {"step": "Resize", **resized, "max_size": None, "size": size},
        {"step": "CenterCrop", "size": [crop, crop]},
        *_TO_TENSOR,
        {"step": "Normalize", "inplace": False, "mean": fields["mean"], "std": fields["std"]},
    ]
