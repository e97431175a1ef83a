"""What a model holds, as it is locked: each parameter and persistent buffer in a line, and a few of its values.

The digest is that of the elements in order, wherever they lie and however.  A lock that still holds is known by one
digest over all lines; the lines and values are there for the diagnosis alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from xxhash import xxh3_128_hexdigest

from pytest_evalmode.lock.lock_file import Entry, LockError
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, undisturbed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAX_SAMPLE_BYTES = 1 << 18
_GRIDS = (24, 16, 12, 8, 4, 2, 1)
_LINE = re.compile(r"(\w+) \(((?:\d+(?:, ?)?)*),?\) ([0-9a-f]{32})(?: ([0-9a-f]{32}))?")
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a model."""

    dtype: str
    shape: tuple[int, ...]
    digest: str
    unordered_digest: str = ""
    """What stays the same in whatever order the values are; of locked tensors only."""

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} {self.digest} {self.unordered_digest}".rstrip()


@dataclass(frozen=True, slots=True)
class ModelContents:
    """What a live model holds: its tensors by qualified name, and a line for each."""

    type: str
    records: Mapping[str, TensorRecord]
    tensors: Mapping[str, Tensor]
    digest: str


def read_fingerprints(model: nn.Module) -> Mapping[str, Fingerprint]:
    """The tensors of a model, read this once."""
    return snapshot.take_snapshot(modules.unwrap(model), untracked=True).fingerprints


def read_contents(model: nn.Module, fingerprints: Mapping[str, Fingerprint] | None = None) -> ModelContents:
    """What a model holds now; `prints` where it has been read already.

    Raises LockError if it has yet to be given its shapes.
    """
    model = modules.unwrap(model)
    parts = modules.walk(model)
    with undisturbed():
        tensors = dict(snapshot.named_tensors(parts)[0])
    if fingerprints is None or not tensors.keys() <= fingerprints.keys():
        fingerprints = read_fingerprints(model)
    with undisturbed():
        lines = {name: _line(name, tensor, fingerprints[name]) for name, tensor in tensors.items()}
    kind = modules.type_name(model)
    told = {name: f"{line.dtype} {line.shape} {line.digest}" for name, line in lines.items()}
    return ModelContents(kind, lines, tensors, _digest(told))


def build_entry(held: ModelContents) -> Entry:
    """What is locked of a model."""
    with undisturbed():
        whole = {
            name: str(TensorRecord(line.dtype, line.shape, line.digest, compute_unordered_digest(held.tensors[name])))
            for name, line in held.records.items()
        }
    return {"type": held.type, "digest": held.digest, "tensors": whole}


def parse_records(entry: Entry, where: str) -> dict[str, TensorRecord]:
    """The lines of a locked model.  Raises LockError, which begins with `where`, where one is none."""
    tensors = entry.get("tensors")
    if not isinstance(tensors, dict):
        raise LockError(f"{where} lists no tensors; delete it and run pytest --evalmode-update-lock")
    return {name: _parsed(name, line, where) for name, line in tensors.items()}


def matches(entry: Entry, held: ModelContents) -> bool:
    """Whether a model is what was locked."""
    return bool(entry.get("digest") == held.digest)


def is_known_to_match(entry: Entry, fingerprints: Mapping[str, Fingerprint]) -> bool:
    """Whether what a guard has read tells by itself that a model is what was locked: nothing is looked at again."""
    if not all(map(_is_in_order, fingerprints.values())):
        return False
    told = {name: f"{_dtype_name(read[1])} {tuple(read[0])} {_hex(read)}" for name, read in fingerprints.items()}
    return bool(entry.get("digest") == _digest(told))


def sample_values(held: ModelContents, max_bytes: int) -> dict[str, Array]:
    """A few values of each tensor, on a grid as fine as there is room for, by name."""
    for side in _GRIDS:
        if sum(_grid_bytes(tensor, side) for tensor in held.tensors.values()) <= max_bytes:
            found = ((name, sample_grid(tensor, *_grid(tensor, side))) for name, tensor in held.tensors.items())
            return {name: values for name, values in found if values is not None}
    return {}


def sample_grid(tensor: Tensor, rows: int, columns: int) -> Array | None:
    """The values of a tensor on a grid, in float32 or int64; None of what has none to show."""
    with undisturbed():
        try:
            plain = tensor.dequantize() if tensor.is_quantized else tensor.detach()
            if plain.is_complex() or plain.layout is not torch.strided or not plain.numel():
                return None
            kind = torch.float32 if plain.is_floating_point() else torch.int64
            table = plain.reshape(plain.shape[0] if plain.dim() > 1 else 1, -1)
            picked = table[_spaced(table.shape[0], rows)][:, _spaced(table.shape[1], columns)]
            array: Array = picked.to(_CPU, kind).numpy()
            return array
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):  # a subclass that shows no values
            return None


def _grid(tensor: Tensor, side: int) -> tuple[int, int]:
    return (side, side) if tensor.dim() > 1 else (1, side * 4)


def compute_unordered_digest(tensor: Tensor) -> str:
    """Two sums over the elements' bits: the same in every order."""
    try:
        bits = _bits(tensor)
        mixed = (bits ^ (bits >> 13)) * -0x61C8864680B583EB
        sums = (int(bits.sum()) & _WORD, int((mixed ^ (mixed >> 29)).sum()) & _WORD)
    except (RuntimeError, NotImplementedError, TypeError):
        return ""
    return f"{sums[0]:016x}{sums[1]:016x}"


_WORD = (1 << 64) - 1
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().to(_CPU).contiguous().reshape(-1)
    return flat.view(_INTEGERS[flat.element_size()]).to(torch.int64)


def compute_digest(tensor: Tensor) -> str:
    """The digest of a tensor's elements, as a line has it; the caller is `undisturbed`."""
    return _hex(fingerprint_of(tensor.detach().to(_CPU).contiguous()))


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(name: str, tensor: Tensor, read: Fingerprint) -> TensorRecord:
    if not read.initialized:
        raise LockError(f"{name} has no shape yet: run the model once before it is locked")
    return TensorRecord(
        _dtype_name(read.dtype), tuple(read.shape), _hex(read) if _is_in_order(read) else compute_digest(tensor)
    )


def _is_in_order(read: Fingerprint) -> bool:
    """Whether what was read are the elements in order, and all of them."""
    return read.strides is None and read.device == _CPU and read.initialized and not read.sharded


def _hex(read: Fingerprint) -> str:
    return xxh3_128_hexdigest(read.bits) if read.has_values else read.bits.hex()


def _digest(told: Mapping[str, str]) -> str:
    """Of what is told of each tensor, by name."""
    return xxh3_128_hexdigest("\n".join([f"{name} {told[name]}" for name in sorted(told)]).encode())


def _parsed(name: str, line: object, where: str) -> TensorRecord:
    found = _LINE.fullmatch(line) if isinstance(line, str) else None
    if found is None:
        raise LockError(f"{where}: {name}: {line!r:.80} is no tensor; delete it and run pytest --evalmode-update-lock")
    dtype, shape, digest_, unordered_ = found.groups()
    return TensorRecord(dtype, tuple(int(size) for size in re.findall(r"\d{1,18}", shape)), digest_, unordered_ or "")


def _spaced(size: int, most: int) -> list[int]:
    if size <= most:
        return list(range(size))
    return [i * (size - 1) // (most - 1) if most > 1 else 0 for i in range(most)]


def _grid_bytes(tensor: Tensor, side: int) -> int:
    rows, columns = _grid(tensor, side)
    first = tensor.shape[0] if tensor.dim() > 1 else 1
    width = 4 if tensor.is_floating_point() else 8
    return min(first, rows) * min(tensor.numel() // max(first, 1), columns) * width
