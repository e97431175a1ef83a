"""Read plans: a fast check that a model has not changed since it was last read.

A model is unchanged if it has the same modules and tensors under the same names, if each tensor has the same address,
shape and dtype, and if no byte changed.  A plan keeps no module or tensor alive.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, compress
from operator import attrgetter, eq
from typing import Any

from torch import Tensor, nn
from xxhash import xxh3_128

from pytest_evalmode.observe.state import digest_cache, write_tracking
from pytest_evalmode.observe.state.digests import LARGE_ELEMENTS
from pytest_evalmode.observe.state.memory_layout import data_address

_TABLES = attrgetter("_modules", "_parameters", "_buffers")
_NOT_SAVED = attrgetter("_non_persistent_buffers_set")
# Tensors without a block of memory have no address, and raise.  Two devices never have the same address.
_PROPERTIES = attrgetter("dtype"), attrgetter("shape")
_LAYOUT: tuple[Any, ...] = Tensor.data_ptr, Tensor.is_contiguous, Tensor.is_neg, *_PROPERTIES

Columns = list[list[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """The modules of a model when it was last read, with one list per property of their tensors."""

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

    def find_tensors(self, skip: Collection[int]) -> list[Tensor] | None:
        """Return the tensors to read if all names lead to the same objects, else None.  Needs `undisturbed()`."""
        parts = [part for ref in self.parts if (part := ref()) is not None]
        if len(parts) < len(self.parts) or self.skipped != set(skip):
            return None
        values, names = _read_tables(parts)
        return list(compress(values, self.is_read)) if names == self.names else None

    def matches(self, tensors: list[Tensor], device_data: Mapping[int, bytes]) -> bool:
        """Return whether nothing changed since the plan was made; `device_data` has the tensors on devices, by `id`."""
        try:  # column by column, so that no list of shapes is left to the garbage collector
            columns = zip(_LAYOUT, self.layouts, strict=True)
            is_same_layout = all(all(map(eq, map(column, tensors), before)) for column, before in columns)
        except (RuntimeError, NotImplementedError):  # no block of memory
            return False
        return (
            is_same_layout
            and _device_digest(tensors, device_data) == self.device_digest
            and _digest(self.small) == self.small_digest
            and digest_cache.are_unchanged(self.large)
        )


def make_plan(
    parts: list[Any], tensors: Iterable[Tensor], skip: Collection[int], device_data: Mapping[int, bytes]
) -> ReadPlan | None:
    """Return a plan for tensors that are about to be read; None if a model has other than plain modules and tensors."""
    try:
        values, names = _read_tables(parts)
    except (AttributeError, TypeError):  # a scripted module
        return None
    read = set(map(id, tensors))
    is_read = [id(value) in read for value in values]
    tensors = list(compress(values, is_read))
    known = {id(part) for part in parts}.union(skip)
    children = (child for part in parts for child in part._modules.values() if child is not None)
    # Packed weights are in no table.
    if not tensors or len(set(map(id, tensors))) < len(read) or not known.issuperset(map(id, children)):
        return None
    if not all(data_address(tensor, tensor.dtype) for tensor in tensors):
        return None
    large: list[digest_cache.Range] = []
    small: list[digest_cache.Range] = []
    for tensor in tensors:
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
    blocks = [(ctypes.c_char * size).from_address(address) for address, size in small]
    return ReadPlan(
        parts=list(map(weakref.ref, parts)),
        skipped=frozenset(skip),
        names=[*names[:-1], list(map(frozenset, names[-1]))],  # copies, since the sets belong to the modules
        is_read=is_read,
        layouts=[list(map(column, tensors)) for column in _LAYOUT],
        large=large,
        small=blocks,
        small_digest=_digest(blocks),
        device_digest=_device_digest(tensors, device_data),
    )


def _device_digest(tensors: Iterable[Tensor], device_data: Mapping[int, bytes]) -> bytes | None:
    if not device_data:
        return None
    return _digest(map(device_data.__getitem__, filter(device_data.__contains__, map(id, tensors))))


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
