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
from urllib.parse import unquote

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128_hexdigest

from pytest_evalmode.lock.architecture import describe_architecture, find_module_changes
from pytest_evalmode.lock.causes.cause import Array
from pytest_evalmode.lock.lock_file import Entry, LockError
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, undisturbed

_MAX_SAMPLE_BYTES = 1 << 18
_GRIDS = (24, 16, 12, 8, 4, 2, 1)
_CPU = torch.device("cpu")
_WITH_SIGNED_ZERO = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
    return ModelContents(modules.type_name(model), describe_architecture(model), records, tensors, _digest_of(records))


def _record(name: str, tensor: Tensor) -> TensorRecord:
    if is_lazy(tensor):
        raise LockError(f"{name} is not initialized (a lazy module): run the model once before locking it")
    return _record_of(_read(tensor))


def _record_of(read: Fingerprint) -> TensorRecord:
    return TensorRecord(_dtype_name(read.dtype), tuple(read.shape), _hex(read))


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


def parse_records(entry: Entry) -> dict[str, TensorRecord]:
    """Return the record of each tensor by name. The entry's own digest was checked when it was read."""
    records = {}
    for name, line in entry["tensors"].items():
        dtype, *sizes, digest = re.findall(r"\w+", line)
        records[name] = TensorRecord(dtype, tuple(map(int, sizes)), digest)
    return records


def parse_architecture(entry: Entry) -> dict[str, str]:
    """Return the description of each module by path."""
    return {unquote(path): line for line, paths in entry["architecture"].items() for path in paths.split(" ")}


def matches(entry: Entry, contents: ModelContents) -> bool:
    """Return whether a model still has the locked tensors and architecture."""
    if entry["digest"] != contents.digest:
        return False
    return not find_module_changes(parse_architecture(entry), contents.architecture)


def is_known_to_match(entry: Entry, model: nn.Module, fingerprints: Mapping[str, Fingerprint]) -> bool:
    """Return whether fingerprints alone prove that a model matches; its tensors are not read again."""
    if not all(map(_is_in_order, fingerprints.values())):
        return False
    if entry["architecture"] != _group(describe_architecture(modules.unwrap(model))):
        return False
    return bool(entry["digest"] == _digest_of({name: _record_of(read) for name, read in fingerprints.items()}))


def sample_values(contents: ModelContents) -> dict[str, Array]:
    """Return a few values of each tensor by name, on the finest grid that fits in a sample file."""
    for side in _GRIDS:
        sizes = {name: (side, side) if each.dim() > 1 else (1, 4 * side) for name, each in contents.tensors.items()}
        grids = {name: sample_grid(each, *sizes[name]) for name, each in contents.tensors.items()}
        sampled = {name: values for name, values in grids.items() if values is not None}
        if sum(values.nbytes for values in sampled.values()) <= _MAX_SAMPLE_BYTES:
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
    """Return the digest of a tensor's elements, as in its record; call it under `undisturbed()`."""
    return _hex(_read(tensor))


def _read(tensor: Tensor) -> Fingerprint:
    """Read the elements of a tensor in their logical order, and -0.0 as 0.0; a sparse or opaque one as it is."""
    plain = tensor.detach().to(_CPU)
    if type(plain) is Tensor and plain.layout is torch.strided and not plain.is_nested:
        plain = plain.contiguous()
        plain = plain + 0 if plain.dtype in _WITH_SIGNED_ZERO else plain
    return fingerprint_of(plain)


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_in_order(read: Fingerprint) -> bool:
    """Return whether a fingerprint covers all elements in their logical order."""
    return read.strides is None and read.device == _CPU and read.initialized and not read.sharded


def _hex(read: Fingerprint) -> str:
    return (xxh3_128_hexdigest(read.bits) if read.has_values else read.bits.hex())[:_DIGEST_LENGTH]


def _digest_of(records: Mapping[str, TensorRecord]) -> str:
    return xxh3_128_hexdigest("\n".join([f"{name} {records[name]}" for name in sorted(records)]).encode())


def spaced(size: int, most: int) -> list[int]:
    """Return at most `most` positions of `size`, evenly spaced from the first to the last."""
    if size <= most:
        return list(range(size))
    return [i * (size - 1) // (most - 1) if most > 1 else 0 for i in range(most)]
