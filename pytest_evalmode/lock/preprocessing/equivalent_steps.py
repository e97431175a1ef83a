"""One pipeline written in two ways: `ToTensor()` for torchvision's `ToImage(), ToDtype(torch.float32, scale=True)`."""

from __future__ import annotations

from typing import Any

_SCALED = {"step": "ToDtype", "dtype": "torch.float32", "scale": True}
_WHOLE = [{"step": "ToImage"}, _SCALED]
_STEPS = {"ToTensor": _WHOLE, "MaybeToTensor": _WHOLE, "PILToTensor": _WHOLE[:1], "MaybePILToTensor": _WHOLE[:1]}
_NOTHING = {"Identity", "ToPureTensor"}  # the values they are given are those that they return
_PRESET = {"step", "antialias", "crop_size", "interpolation", "mean", "resize_size", "std"}
_DEFAULTS = {"Lambda": {"types": ["builtins.object"]}}  # of fields that v2 has and v1 has not


def canonical_form(value: Any) -> Any:
    """A description in the one way in which two are compared that may do the same."""
    if isinstance(value, list):
        return [step for each in value for step in _steps(canonical_form(each))]
    if not isinstance(value, dict):
        return value
    fields = {key: _field(key, each) for key, each in value.items() if not _is_default(value, key, each)}
    if value.get("step") == "ImageClassification" and fields.keys() == _PRESET:  # what torchvision's weights bring
        return _container(_classification(fields))
    steps = fields.get("transforms")
    return _container(steps) if _only_holds(fields) and isinstance(steps, list) else fields


def _field(key: str, value: Any) -> Any:
    if key == "interpolation" and isinstance(value, str):
        return value.rpartition(".")[2].lower()  # the text, torchvision's constant or Pillow's
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], (dict, list)):
        return value[0]  # a size of (256) is one of 256
    return canonical_form(value)


def _is_default(step: dict[str, Any], key: str, value: Any) -> bool:
    name = step.get("step")
    if key == "repr":
        return bool(value == f"{name}()")
    defaults = _DEFAULTS.get(str(name), {})
    return key in defaults and value == defaults[key]


def _steps(step: Any) -> list[Any]:
    """What stands for a step among others: nothing, itself, what it is made of, or what a container in it holds."""
    if not isinstance(step, dict):
        return [step]
    name = step.get("step")
    if name == "ConvertImageDtype" and step.keys() == {"step", "dtype"}:
        return [{**step, "step": "ToDtype", "scale": True}]
    if _only_holds(step):
        return list(step["transforms"])
    if len(step) > 1:  # a class of the user's own by that name, say: its code or fields tell more
        return [step]
    return [] if name in _NOTHING else _STEPS.get(str(name), [step])


def _only_holds(fields: dict[str, Any]) -> bool:
    return fields.get("step") in ("Compose", "Sequential") and fields.keys() == {"step", "transforms"}


def _container(steps: list[Any]) -> dict[str, Any]:
    return {"step": "Compose", "transforms": steps}


def _classification(fields: dict[str, Any]) -> list[Any]:
    size, crop = fields["resize_size"], fields["crop_size"]
    resized = {key: fields[key] for key in ("antialias", "interpolation")}
    return [
        {"step": "Resize", **resized, "max_size": None, "size": size},
        {"step": "CenterCrop", "size": [crop, crop]},
        *_WHOLE,
        {"step": "Normalize", "inplace": False, "mean": fields["mean"], "std": fields["std"]},
    ]
