"""A batch, however it is nested, as named arrays; and the few samples of it that a diagnosis needs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs import image_layout
from pytest_evalmode.lock.inputs.diagnosis import Array

WHOLE = "batch"  # the name of a batch that is one array
_MANY = 64  # samples of one array that are kept at most
_STEP = 16  # by which a cut image is smaller, so that its middle lies on the grid of JPEG


class BatchArray(NamedTuple):
    """An array, and the dtype that it was given in, for some of which numpy has none: `bfloat16`, `text`."""

    array: Array
    dtype: str


def named_arrays(batch: object) -> dict[str, BatchArray]:
    """Every array of a batch, in its order, named by its path in it: `pixel_values`, `boxes[0].size`."""
    return {path or WHOLE: found for path, found in _walk(batch, "")}


def arrays(batch: object) -> dict[str, Array]:
    """Every array of a batch by its path, whatever dtype it was given in."""
    return {path: found.array for path, found in named_arrays(batch).items()}


def first_samples(batch: object, limit: int = 1_000_000) -> dict[str, Array]:
    """The first samples of each array, at most `limit` bytes in all; an image too large is cut to its middle."""
    found = arrays(batch)
    kept: dict[str, Array] = {}
    left, size = limit, len(found)
    # The small ones first: what they leave of their share is for the large.
    for i, name in enumerate(sorted(found, key=lambda name: found[name].nbytes)):
        kept[name] = trim_samples(found[name], left // (size - i))
        left -= kept[name].nbytes
    return {name: kept[name] for name in found}


def trim_samples(array: Array, limit: int) -> Array:
    """As many of the first samples as fit in so many bytes, else the middle of the first."""
    if array.nbytes <= limit and (array.ndim == 0 or len(array) <= _MANY):
        return array
    if array.ndim == 0:
        return array[None][:0]
    images = image_layout.read_as_images(array)
    single = bool(images) and images[0].layout in ("CHW", "HWC", "HW")
    if not single:
        n = min(_MANY, int(limit // max(1, array[:1].nbytes)))
        if n or not images:
            return array[:n]
        array = array[:1]
    return _middle(array, images[0].layout, limit)


def _middle(array: Array, axes: str, limit: int) -> Array:
    """Cut alike at both sides, so that what a flip exchanges is still in it."""
    rows, columns = axes.index("H"), axes.index("W")
    while array.nbytes > limit:
        axis = rows if array.shape[rows] >= array.shape[columns] else columns
        if array.shape[axis] <= 2 * _STEP:
            return array[(slice(0, 0),)]
        array = np.take(array, range(_STEP // 2, array.shape[axis] - _STEP // 2), axis)
    return array


def rebuild_batch(batch: object, values: Mapping[str, Array]) -> Any:
    """A batch of other values, given by path: tensors, arrays, and mappings of them, as they were given."""
    if isinstance(batch, Mapping):
        own = {
            key: {
                path.removeprefix(f"{key}").removeprefix(".") or WHOLE: each
                for path, each in values.items()
                if path == key or path.startswith(f"{key}.")
            }
            for key in batch
        }
        return {key: rebuild_batch(each, own[key]) for key, each in batch.items()}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(batch, torch.Tensor):
        return torch.from_numpy(values[WHOLE].copy()).to(batch.device, batch.dtype)
    if isinstance(batch, np.ndarray):
        return values[WHOLE].copy()
    raise TypeError(
        f"inputs of type {type(batch).__name__} cannot be made anew; give a tensor, an array or a dict of them"
    )


def vocabulary_of(batch: object) -> dict[int, str]:
    """What the ids of a tokenised batch stand for, where the tokenizer said so (Hugging Face's fast ones)."""
    known: dict[int, str] = {}
    for encoding in getattr(batch, "encodings", None) or ():
        known.update(zip(encoding.ids, encoding.tokens, strict=True))
    return known


def _walk(value: Any, path: str) -> Iterator[tuple[str, BatchArray]]:
    if value is None:
        return
    array = _array(value)
    if array is not None:
        yield path, BatchArray(array, _dtype(value, array))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _walk(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key, each in zip(value._fields, value, strict=True):
            yield from _walk(each, f"{path}.{key}" if path else key)
    elif isinstance(value, (list, tuple)):
        yield from _walk_sequence(value, path)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from _walk(getattr(value, each.name), f"{path}.{each.name}" if path else each.name)
    else:
        raise TypeError(
            f"inputs: {path or 'the batch'} is of type {type(value).__name__}, which is none of: tensors, arrays, "
            "images, numbers, strings, and dicts, lists, tuples and dataclasses of them"
        )


def _walk_sequence(value: Sequence[Any], path: str) -> Iterator[tuple[str, BatchArray]]:
    """Equal things become one array with a sample each; others are named by their place."""
    parts = [list(_walk(each, "")) for each in value]
    if parts and all(len(part) == 1 and part[0][0] == "" for part in parts):
        found = [part[0][1] for part in parts]
        if len({(each.array.shape, each.dtype) for each in found}) == 1:
            yield path, BatchArray(np.stack([each.array for each in found]), found[0].dtype)
            return
    for i, part in enumerate(parts):
        for name, each in part:
            yield f"{path}[{i}]" + (name if name.startswith("[") or not name else f".{name}"), each


def _array(value: Any) -> Array | None:
    """The value as an array, if it is one thing."""
    if isinstance(value, (bool, int, float, complex, str, np.generic)):
        return np.asarray(value)
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _tensor(value, torch)
    if isinstance(value, np.ndarray):
        return _numeric(value)
    image = sys.modules.get("PIL.Image")
    if image is not None and isinstance(value, image.Image):
        return np.asarray(value.convert("RGB") if value.mode == "P" else value)
    if hasattr(value, "__array__") and not isinstance(value, (Mapping, list, tuple)):
        return _numeric(np.asarray(value))
    return None


def _dtype(value: Any, array: Array) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return str(value.dtype).removeprefix("torch.")
    return "text" if array.dtype.kind in "US" else array.dtype.name


def _numeric(value: Array) -> Array:
    if value.dtype == object:
        value = np.asarray(value.tolist())
    if value.dtype.kind not in "biufcUSM":
        raise TypeError(f"inputs: an array of dtype {value.dtype} cannot be compared; give numbers or strings")
    return value.astype(value.dtype.newbyteorder("=")) if value.dtype.byteorder in "<>" else value


def _tensor(value: Any, torch: Any) -> Array:
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.device.type == "meta":
        raise TypeError("inputs: a tensor on the device meta has no values to compare")
    value = value.cpu().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16 or (value.dtype.is_floating_point and value.element_size() < 2):
        value = value.float()  # exact; numpy has no such type
    return np.asarray(value.numpy())
