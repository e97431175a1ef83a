"""The lock entry of a model: its architecture, a record of each parameter and persistent buffer, and a few values.

A digest covers the elements in their logical order, independent of their layout in memory. One digest over all records
shows that the tensors still match; the records and values are only needed for a diagnosis.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import torch
from torch import Tensor, nn
from xxhash import xxh3_128_hexdigest

from pytest_evalmode.lock.architecture import describe_architecture, find_module_changes
from pytest_evalmode.lock.lock_file import Entry, LockError
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, undisturbed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAX_SAMPLE_BYTES = 1 << 18
_GRIDS = (24, 16, 12, 8, 4, 2, 1)
_RECORD = re.compile(r"(\w+) \(((?:\d+(?:, ?)?)*),?\) ([0-9a-f]{16})")
_REMEDY = "delete it and run pytest --evalmode-update-lock"
_CPU = torch.device("cpu")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DIGEST_LENGTH = 16
"""Hexadecimal digits of a tensor's digest. The digest of the whole model has twice as many."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a model, as the lock file stores it."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} {self.digest}"


@dataclass(frozen=True, slots=True)
class ModelContents:
    """The tensors of a live model by qualified name, with a record of each, and its architecture."""

    type: str
    architecture: Mapping[str, str]
    records: Mapping[str, TensorRecord]
    tensors: Mapping[str, Tensor]
    digest: str


def read_contents(model: nn.Module) -> ModelContents:
    """Return the current contents of a model; raise LockError if a lazy module is not initialized."""
    model = modules.unwrap(model)
    with undisturbed():
        tensors = dict(snapshot.named_tensors(modules.walk(model))[0])
        records = {name: _record(name, tensor) for name, tensor in tensors.items()}
    digest = _digest_of({name: str(record) for name, record in records.items()})
    return ModelContents(modules.type_name(model), describe_architecture(model), records, tensors, digest)


def _record(name: str, tensor: Tensor) -> TensorRecord:
    read = fingerprint_of(tensor)
    if not read.initialized:
        raise LockError(f"{name} is not initialized (a lazy module): run the model once before locking it")
    digest = _hex(read) if _is_in_order(read) and not _has_negative_zero(tensor) else compute_digest(tensor)
    return TensorRecord(_dtype_name(read.dtype), tuple(read.shape), digest)


def build_entry(contents: ModelContents) -> Entry:
    """Return the lock entry of a model."""
    return {
        "type": contents.type,
        "digest": contents.digest,
        "architecture": _group(contents.architecture),
        "tensors": {name: str(record) for name, record in contents.records.items()},
    }


def _group(architecture: Mapping[str, str]) -> dict[str, str]:
    """Return the paths of the modules with the same type and settings, by these, which takes one line for all."""
    paths = defaultdict(list)
    for path, line in architecture.items():
        paths[line].append(path)
    return {line: " ".join(map(_escape, each)) for line, each in paths.items()}


def _escape(path: str) -> str:
    return path.replace("%", "%25").replace(" ", "%20")


def parse_records(entry: Entry, where: str) -> dict[str, TensorRecord]:
    """Return the tensor records of an entry; raise LockError, naming the entry by `where`, if one is invalid."""
    tensors, records = entry.get("tensors"), {}
    if not isinstance(tensors, dict):
        raise LockError(f"{where} has no tensors; {_REMEDY}")
    for name, line in tensors.items():
        match = _RECORD.fullmatch(line) if isinstance(line, str) else None
        if match is None:
            raise LockError(f"{where}: {name}: invalid tensor record {line!r:.80}; {_REMEDY}")
        dtype, shape, digest = match.groups()
        sizes = tuple(int(size) for size in re.findall(r"\d{1,18}", shape))
        records[name] = TensorRecord(dtype, sizes, digest)
    return records


def parse_architecture(entry: Entry, where: str) -> dict[str, str]:
    """Return the architecture of an entry; raise LockError, naming the entry by `where`, if it is invalid."""
    groups = entry.get("architecture")
    if not isinstance(groups, dict) or not all(isinstance(paths, str) for paths in groups.values()):
        raise LockError(f"{where} has no valid architecture; {_REMEDY}")
    return {unquote(path): line for line, paths in groups.items() for path in paths.split(" ")}


def matches(entry: Entry, contents: ModelContents) -> bool:
    """Return whether a model still has the locked tensors and architecture."""
    if entry.get("digest") != contents.digest:
        return False
    return not find_module_changes(parse_architecture(entry, "the model"), contents.architecture)


def is_known_to_match(entry: Entry, model: nn.Module, fingerprints: Mapping[str, Fingerprint]) -> bool:
    """Return whether fingerprints alone prove that a model matches; its tensors are not read again."""
    if not all(map(_is_in_order, fingerprints.values())):
        return False
    if entry.get("architecture") != _group(describe_architecture(modules.unwrap(model))):
        return False
    lines = {name: f"{_dtype_name(read[1])} {tuple(read[0])} {_hex(read)}" for name, read in fingerprints.items()}
    return bool(entry.get("digest") == _digest_of(lines))


def sample_values(contents: ModelContents, max_bytes: int) -> dict[str, Array]:
    """Return a few values of each tensor by name, on the finest grid that fits in `max_bytes`."""
    for side in _GRIDS:
        sizes = {name: (side, side) if each.dim() > 1 else (1, 4 * side) for name, each in contents.tensors.items()}
        grids = {name: sample_grid(each, *sizes[name]) for name, each in contents.tensors.items()}
        sampled = {name: values for name, values in grids.items() if values is not None}
        if sum(values.nbytes for values in sampled.values()) <= max_bytes:
            return sampled
    return {}


def sample_grid(tensor: Tensor, rows: int, columns: int) -> Array | None:
    """Return values of a tensor on a grid, in float32 or int64; None if it is empty, complex, sparse or opaque.

    It is read as a matrix: the first dimension by all others, or one row if it has fewer than two dimensions.
    """
    with undisturbed():
        try:
            plain = tensor.dequantize() if tensor.is_quantized else tensor.detach()
            if plain.is_complex() or plain.layout is not torch.strided or not plain.numel():
                return None
            dtype = torch.float32 if plain.is_floating_point() else torch.int64
            matrix = plain.reshape(plain.shape[0] if plain.dim() > 1 else 1, -1)
            picked = matrix[spaced(matrix.shape[0], rows)][:, spaced(matrix.shape[1], columns)]
            array: Array = picked.to(_CPU, dtype).numpy()
            return array
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):  # a subclass without readable values
            return None


def compute_digest(tensor: Tensor) -> str:
    """Return the digest of a tensor's elements, as in its record; call it under `undisturbed()`.

    -0.0 has the digest of 0.0.
    """
    plain = tensor.detach().to(_CPU).contiguous()
    return _hex(fingerprint_of(plain + 0 if _has_negative_zero(plain) else plain))


def _has_negative_zero(tensor: Tensor) -> bool:
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16) or tensor.is_sparse:
        return False
    try:
        bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
        return bool((bits == torch.iinfo(bits.dtype).min).any())
    except (RuntimeError, NotImplementedError, TypeError):  # a subclass without readable values
        return False


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_in_order(read: Fingerprint) -> bool:
    """Return whether a fingerprint covers all elements in their logical order."""
    return read.strides is None and read.device == _CPU and read.initialized and not read.sharded


def _hex(read: Fingerprint) -> str:
    return (xxh3_128_hexdigest(read.bits) if read.has_values else read.bits.hex())[:_DIGEST_LENGTH]


def _digest_of(lines: Mapping[str, str]) -> str:
    return xxh3_128_hexdigest("\n".join([f"{name} {lines[name]}" for name in sorted(lines)]).encode())


def spaced(size: int, most: int) -> list[int]:
    """Return at most `most` positions of `size`, evenly spaced from the first to the last."""
    if size <= most:
        return list(range(size))
    return [i * (size - 1) // (most - 1) if most > 1 else 0 for i in range(most)]
