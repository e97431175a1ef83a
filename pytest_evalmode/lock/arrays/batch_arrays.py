"""The arrays of a nested batch, by name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pytest_evalmode.lock.causes.cause import Array

_SINGLE = "batch"  # name of the array of a batch that is just one array


class BatchArray(NamedTuple):
    """An array and the name of its original dtype, which NumPy may not have (`bfloat16`, `text`)."""

    array: Array
    dtype: str


def named_arrays(batch: object) -> dict[str, BatchArray]:
    """Return every array of a batch, in order, by its path: `pixel_values`, `boxes[0].size`.

    Args:
        batch: Tensors, arrays, Pillow images, numbers, strings, and nested mappings, sequences and dataclasses of them.

    Returns:
        The arrays by path (`batch` if the batch is one array), each in its own shape and with its own values. A
        sequence of equal shapes becomes one array with a leading sample axis. Dtypes that NumPy does not have
        (bfloat16, float8) become float32.

    Raises:
        TypeError: If the batch contains anything else.
    """
    return {path or _SINGLE: array for path, array in _walk(batch, "")}


def arrays(batch: object) -> dict[str, Array]:
    """Return every array of a batch by its path, without the original dtypes; see `named_arrays`."""
    return {path: named.array for path, named in named_arrays(batch).items()}


def rebuild_batch(batch: object, values: Mapping[str, Array]) -> Any:
    """Return a batch of the same structure with other values.

    Args:
        batch: A tensor, an array, or a nested mapping of them.
        values: The new values by path, as `arrays` returns them.

    Returns:
        A tensor on the same device and of the same dtype, an array, or a dict of them.

    Raises:
        TypeError: If the batch contains anything else.
    """
    if isinstance(batch, Mapping):
        own = {
            key: {
                path.removeprefix(f"{key}").removeprefix(".") or _SINGLE: each
                for path, each in values.items()
                if path == key or path.startswith(f"{key}.")
            }
            for key in batch
        }
        return {key: rebuild_batch(each, own[key]) for key, each in batch.items()}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(batch, torch.Tensor):
        return torch.from_numpy(values[_SINGLE].copy()).to(batch.device, batch.dtype)
    if isinstance(batch, np.ndarray):
        return values[_SINGLE].copy()
    raise TypeError(
        f"inputs of type {type(batch).__name__} cannot be rebuilt; pass a tensor, an array or a dict of them"
    )


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
            f"inputs: {path or 'the batch'} is of type {type(value).__name__}; pass tensors, arrays, images, numbers, "
            "strings, or dicts, lists, tuples and dataclasses of them"
        )


def _walk_sequence(value: Sequence[Any], path: str) -> Iterator[tuple[str, BatchArray]]:
    """Stack elements of one shape and dtype to one array; name others by their index.

    Lists of token ids of unequal lengths become texts, such as "1 11 12".
    """
    if _is_ragged_ids(value):
        yield path, BatchArray(np.asarray([" ".join(map(str, row)) for row in value]), "text")
        return
    parts = [list(_walk(each, "")) for each in value]
    if parts and all(len(part) == 1 and part[0][0] == "" for part in parts):
        elements = [part[0][1] for part in parts]
        if len({(each.array.shape, each.dtype) for each in elements}) == 1:
            yield path, BatchArray(np.stack([each.array for each in elements]), elements[0].dtype)
            return
    for i, part in enumerate(parts):
        for name, each in part:
            yield f"{path}[{i}]" + (name if name.startswith("[") or not name else f".{name}"), each


def _is_ragged_ids(value: Sequence[Any]) -> bool:
    rows = all(isinstance(row, (list, tuple)) and not hasattr(row, "_fields") for row in value)
    return rows and len({len(row) for row in value}) > 1 and all(type(each) is int for row in value for each in row)


def _array(value: Any) -> Array | None:
    """Return a tensor, array, image, number or string as an array; None for anything else."""
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
        raise TypeError(f"inputs: an array of dtype {value.dtype} cannot be compared; pass numbers or strings")
    return value.astype(value.dtype.newbyteorder("=")) if value.dtype.byteorder in "<>" else value


def _tensor(value: Any, torch: Any) -> Array:
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
