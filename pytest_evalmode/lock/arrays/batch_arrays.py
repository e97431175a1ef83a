"""The arrays of a nested batch, by name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pytest_evalmode.lock.causes.cause import Array

_SINGLE = "batch"  # name of the array of a batch that is just one array


class BatchArray(NamedTuple):
    """An array and the name of its original dtype, which NumPy may not have (`bfloat16`, `text`)."""

    array: Array
    dtype: str


def named_arrays(batch: object) -> dict[str, BatchArray]:
    """Return every array of a batch, in order, by its path: `pixel_values`, `boxes[0].size`; `batch` for a single one.

    A batch is tensors, arrays, Pillow images, numbers, strings, and nested mappings, sequences and dataclasses of them;
    anything else raises TypeError. A sequence of equal shapes becomes one array with a leading sample axis. Dtypes that
    NumPy does not have (bfloat16, float8) become float32.
    """
    return {path.removeprefix(".") or _SINGLE: array for path, array in _walk(batch, "")}


def arrays(batch: object) -> dict[str, Array]:
    """Return every array of a batch by its path, without the original dtypes; see `named_arrays`."""
    return {path: named.array for path, named in named_arrays(batch).items()}


def rebuild_batch(batch: object, values: Mapping[str, Array], path: str = "") -> Any:
    """Return a batch of the same structure with other values, by path as `arrays` returns them."""
    if isinstance(batch, Mapping):
        return {key: rebuild_batch(each, values, f"{path}.{key}") for key, each in batch.items()}
    if not isinstance(batch, Tensor | np.ndarray):
        kind = type(batch).__name__
        raise TypeError(f"inputs of type {kind} cannot be rebuilt; pass a tensor, an array or a dict of them")
    array = values[path.removeprefix(".") or _SINGLE].copy()
    return torch.from_numpy(array).to(batch.device, batch.dtype) if isinstance(batch, Tensor) else array


def _walk(value: Any, path: str) -> Iterator[tuple[str, BatchArray]]:
    if value is None:
        return
    array = _read(value)
    if array is not None:
        yield path, array
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _walk(each, f"{path}.{key}")
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        yield from _walk_sequence(value, path)
    elif hasattr(value, "_fields") or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        for name in getattr(value, "_fields", None) or [each.name for each in dataclasses.fields(value)]:
            yield from _walk(getattr(value, name), f"{path}.{name}")
    else:
        raise TypeError(
            f"inputs: {path.removeprefix('.') or 'the batch'} is of type {type(value).__name__}; pass tensors, arrays, "
            "images, numbers, strings, or dicts, lists, tuples and dataclasses of them"
        )


def _walk_sequence(value: Sequence[Any], path: str) -> Iterator[tuple[str, BatchArray]]:
    """Stack elements of one shape and dtype to one array; name others by their index.

    Lists of token ids of unequal lengths become texts, such as "1 11 12".
    """
    if _is_ragged_ids(value):
        yield path, BatchArray(np.asarray([" ".join(map(str, row)) for row in value]), "text")
        return
    parts = [dict(_walk(each, "")) for each in value]
    elements = [part[""] for part in parts if part.keys() == {""}]
    if len(elements) == len(parts) and len({(each.array.shape, each.dtype) for each in elements}) == 1:
        yield path, BatchArray(np.stack([each.array for each in elements]), elements[0].dtype)
        return
    for i, part in enumerate(parts):
        yield from ((f"{path}[{i}]{name}", each) for name, each in part.items())


def _is_ragged_ids(value: Sequence[Any]) -> bool:
    rows = all(isinstance(row, list | tuple) and not hasattr(row, "_fields") for row in value)
    return rows and len({len(row) for row in value}) > 1 and all(type(each) is int for row in value for each in row)


def _read(value: Any) -> BatchArray | None:
    """Return a tensor, array, image, number or string as an array; None for anything else."""
    image = sys.modules.get("PIL.Image")
    if isinstance(value, Tensor):
        return BatchArray(_read_tensor(value), str(value.dtype).removeprefix("torch."))
    if isinstance(value, bytes):
        array = np.frombuffer(value, np.uint8)
    elif image is not None and isinstance(value, image.Image):
        array = np.asarray(value.convert("RGB") if value.mode == "P" else value)
    elif isinstance(value, bool | int | float | complex | str) or (
        hasattr(value, "__array__") and not isinstance(value, Mapping | list | tuple)
    ):
        array = np.asarray(value)
    else:
        return None
    array = np.asarray(array.tolist()) if array.dtype == object else array
    if array.dtype.kind not in "biufcUSM":
        raise TypeError(f"inputs: an array of dtype {array.dtype} cannot be compared; pass numbers or strings")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return BatchArray(array, "text" if array.dtype.kind in "US" else array.dtype.name)


def _read_tensor(value: Tensor) -> Array:
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.device.type == "meta":
        raise TypeError("inputs: a tensor on the meta device has no values to compare")
    value = value.cpu().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16 or (value.dtype.is_floating_point and value.element_size() < 2):
        value = value.float()  # exact, and NumPy does not have this dtype
    return np.asarray(value.numpy())
