"""A fast check that a model has not changed since it was last read.

A model is unchanged if it has the same modules and tensors under the same names, if each tensor has the same address,
shape and dtype, and if no byte changed.  For large tensors the kernel reports that; small tensors are hashed together,
as is the data that devices return for theirs.  A plan keeps no module or tensor alive.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, compress
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from xxhash import xxh3_128

from pytest_evalmode.observe.state import devices, digest_cache, write_tracking
from pytest_evalmode.observe.state.digests import LARGE_ELEMENTS
from pytest_evalmode.observe.state.memory_layout import data_address

_TYPES = {nn.Parameter, Tensor}
_TABLES = attrgetter("_modules", "_parameters", "_buffers")
_NOT_SAVED = attrgetter("_non_persistent_buffers_set")
# Tensors without a block of memory have no address, and raise.
_LAYOUT = (Tensor.data_ptr, Tensor.is_contiguous, Tensor.is_neg, attrgetter("dtype"), attrgetter("shape"))
_LAYOUT_WITH_DEVICE = (*_LAYOUT, attrgetter("device"))

Columns = list[list[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """The modules of a model when it was last read, and the names and layouts of their tensors, as columns."""

    parts: list[weakref.ref[nn.Module]]
    skipped: frozenset[int]
    names: Columns
    is_read: list[bool]
    """For each entry of the tables of its modules, whether it is a tensor that was read."""
    layouts: Columns
    large: list[digest_cache.Range]
    small: list[ctypes.Array[ctypes.c_char]]
    """The memory of the small tensors.  Valid only while the layouts are equal."""
    small_digest: bytes
    device_digest: bytes | None
    """The digest of the data from devices; None if no tensor is on one."""

    def find_tree(self, skip: Collection[int]) -> TreeState | None:
        """Return the current state if all names lead to the same modules, else None.  Needs `undisturbed()`."""
        parts = [ref() for ref in self.parts]
        if self.skipped != set(skip):
            return None
        living = [part for part in parts if part is not None]
        if len(living) < len(parts):
            return None
        values, names = _read_tables(living)
        if names != self.names:
            return None
        return _tree_state(living, names, list(compress(values, self.is_read)), self.is_read)


@dataclass(frozen=True, slots=True, eq=False)
class TreeState:
    """The modules of a model now, and the names and layouts of their tensors, as columns."""

    parts: list[nn.Module]
    names: Columns
    is_read: list[bool]
    tensors: list[Tensor]
    layouts: Columns

    def matches(self, plan: ReadPlan, device_data: Mapping[int, bytes]) -> bool:
        """Return whether nothing changed since the plan was made; `device_data` has the tensors on devices, by `id`."""
        return (
            self.layouts == plan.layouts
            and self._device_digest(device_data) == plan.device_digest
            and _digest(plan.small) == plan.small_digest
            and digest_cache.are_unchanged(plan.large)
        )

    def make_plan(self, skip: Collection[int], device_data: Mapping[int, bytes]) -> ReadPlan | None:
        """Return a plan, made before the tensors are read; None if a tensor is more than a block of bytes."""
        if not all(data_address(tensor, tensor.dtype) for tensor in self.tensors):
            return None
        large: list[digest_cache.Range] = []
        small: list[digest_cache.Range] = []
        for tensor in self.tensors:
            if id(tensor) in device_data:
                continue
            if not tensor.is_cpu:
                return None
            range_ = tensor.data_ptr(), tensor.nbytes
            if tensor.numel() >= LARGE_ELEMENTS:
                large.append(range_)
                small += digest_cache.partial_pages(range_)
            else:
                small.append(range_)
        if large and write_tracking.tracker() is None:
            return None
        parts = list(map(weakref.ref, self.parts))
        names = [*self.names[:-1], list(map(frozenset, self.names[-1]))]  # copies, since the sets belong to the modules
        blocks = [(ctypes.c_char * size).from_address(address) for address, size in small]
        digest, device_digest = _digest(blocks), self._device_digest(device_data)
        return ReadPlan(parts, frozenset(skip), names, self.is_read, self.layouts, large, blocks, digest, device_digest)

    def _device_digest(self, device_data: Mapping[int, bytes]) -> bytes | None:
        if not device_data:
            return None
        return _digest(map(device_data.__getitem__, filter(device_data.__contains__, map(id, self.tensors))))


def read_tree(parts: list[Any], skip: Collection[int], *, include_non_persistent: bool) -> TreeState | None:
    """Return the state of a model; None if it has other than plain modules and tensors.  Needs `undisturbed()`."""
    try:
        values, names = _read_tables(parts)
    except (AttributeError, TypeError):  # a scripted module, or the tables of a dead one
        return None
    is_read: list[bool] = []
    for part in parts:
        not_saved = () if include_non_persistent else part._non_persistent_buffers_set
        is_read += [False] * len(part._modules)
        is_read += [tensor is not None for tensor in part._parameters.values()]
        is_read += [tensor is not None and name not in not_saved for name, tensor in part._buffers.items()]
    tensors = list(compress(values, is_read))
    known = {id(part) for part in parts}.union(skip)
    children = (child for part in parts for child in part._modules.values() if child is not None)
    if not tensors or not _TYPES.issuperset(map(type, tensors)) or not known.issuperset(map(id, children)):
        return None
    return _tree_state(parts, names, tensors, is_read)


def _tree_state(parts: list[nn.Module], names: Columns, tensors: list[Tensor], is_read: list[bool]) -> TreeState | None:
    try:
        columns = _LAYOUT_WITH_DEVICE if devices.accelerator_in_use() else _LAYOUT
        return TreeState(parts, names, is_read, tensors, [list(map(column, tensors)) for column in columns])
    except (RuntimeError, NotImplementedError):
        return None


def _read_tables(parts: list[nn.Module]) -> tuple[list[Any], Columns]:
    """Return all entries of the modules' tables, in order, and columns that identify them."""
    tables: list[Any] = list(chain.from_iterable(map(_TABLES, parts)))
    filled = list(filter(None, tables))
    values = list(chain.from_iterable(map(dict.values, filled)))
    return values, [
        list(map(type, parts)),
        list(map(len, tables)),
        list(chain.from_iterable(filled)),
        list(map(type, values)),
        list(map(id, values)),
        list(map(_NOT_SAVED, parts)),
    ]


def _digest(blocks: Iterable[ctypes.Array[ctypes.c_char] | bytes]) -> bytes:
    digest = xxh3_128()
    deque(map(digest.update, blocks), maxlen=0)
    return digest.digest()
