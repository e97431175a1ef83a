"""What a tree of modules held when it was last read, and a cheap way to say that it holds the same still.

It does where the same names lead to the same modules and to tensors of the same form at the same addresses, and no byte
there is another: the kernel says so of the large ones, and the small ones are read, all in one go, as is all that lies
on a device, which has been read before it comes to a plan.  No module or tensor is kept for it.
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

from pytest_evalmode.observe.state import devices, digest_cache
from pytest_evalmode.observe.state.digests import LARGE_ELEMENTS
from pytest_evalmode.observe.state.memory_layout import data_address

_TYPES = {nn.Parameter, Tensor}
_TABLES = attrgetter("_modules", "_parameters", "_buffers")
_NOT_SAVED = attrgetter("_non_persistent_buffers_set")
# An address alone says that a tensor is a block of memory: others have none, and raise.
_FORM = (Tensor.data_ptr, Tensor.is_contiguous, Tensor.is_neg, attrgetter("dtype"), attrgetter("shape"))
_FORM_ELSEWHERE = (*_FORM, attrgetter("device"))

Columns = list[list[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """A tree by its parts, the names in it and the form of its tensors, column by column, and where these lie."""

    parts: list[weakref.ref[nn.Module]]
    skipped: frozenset[int]
    names: Columns
    chosen: list[bool]
    """Which of all that the tables of its modules hold are the tensors that were read."""
    form: Columns
    large: list[digest_cache.Range]
    small: list[ctypes.Array[ctypes.c_char]]
    """To be looked at only while the form is what it was."""
    digest: bytes
    """Of the small ones."""
    there: bytes | None
    """The digest of what devices said; None where nothing lies on one."""

    def find_tree(self, skip: Collection[int]) -> TreeState | None:
        """The tree as it is now, where it is made of the same modules by the same names; be `undisturbed`."""
        parts = [ref() for ref in self.parts]
        if self.skipped != set(skip):
            return None
        living = [part for part in parts if part is not None]
        if len(living) < len(parts):
            return None
        values, names = _named(living)
        return _tree(living, names, list(compress(values, self.chosen)), self.chosen) if names == self.names else None


@dataclass(frozen=True, slots=True, eq=False)
class TreeState:
    """A tree as it is now."""

    parts: list[nn.Module]
    names: Columns
    chosen: list[bool]
    tensors: list[Tensor]
    form: Columns

    def matches(self, plan: ReadPlan, there: Mapping[int, bytes]) -> bool:
        """Whether this tree, found by its plan, is what it was, bit for bit; devices say what is `there`, by `id`."""
        return (
            self.form == plan.form
            and self._told(there) == plan.there
            and _digest(plan.small) == plan.digest
            and digest_cache.are_unchanged(plan.large)
        )

    def make_plan(self, skip: Collection[int], there: Mapping[int, bytes]) -> ReadPlan | None:
        """What to compare with later, taken before the tree is read; None where a tensor is more than its bytes."""
        if not all(data_address(tensor, tensor.dtype) for tensor in self.tensors):
            return None
        large: list[digest_cache.Range] = []
        small: list[digest_cache.Range] = []
        for tensor in self.tensors:
            if id(tensor) in there:
                continue
            if not tensor.is_cpu:
                return None
            range_ = tensor.data_ptr(), tensor.nbytes
            if tensor.numel() >= LARGE_ELEMENTS:
                large.append(range_)
                small += digest_cache.partial_pages(range_)
            else:
                small.append(range_)
        if large and digest_cache.get_cache() is None:
            return None
        parts = list(map(weakref.ref, self.parts))
        names = [*self.names[:-1], list(map(frozenset, self.names[-1]))]  # the sets are the modules' own
        blocks = [(ctypes.c_char * size).from_address(address) for address, size in small]
        there_ = self._told(there)
        return ReadPlan(parts, frozenset(skip), names, self.chosen, self.form, large, blocks, _digest(blocks), there_)

    def _told(self, there: Mapping[int, bytes]) -> bytes | None:
        return _digest(map(there.__getitem__, filter(there.__contains__, map(id, self.tensors)))) if there else None


def read_tree(parts: list[Any], skip: Collection[int], *, include_non_persistent: bool) -> TreeState | None:
    """What can be compared with a plan; None of other things than plain modules and tensors.  Be `undisturbed`."""
    try:
        values, names = _named(parts)
    except (AttributeError, TypeError):  # scripted, or the remains of one that has died
        return None
    chosen: list[bool] = []
    for part in parts:
        not_saved = () if include_non_persistent else part._non_persistent_buffers_set
        chosen += [False] * len(part._modules)
        chosen += [tensor is not None for tensor in part._parameters.values()]
        chosen += [tensor is not None and name not in not_saved for name, tensor in part._buffers.items()]
    tensors = list(compress(values, chosen))
    known = {id(part) for part in parts}.union(skip)
    children = (child for part in parts for child in part._modules.values() if child is not None)
    if not tensors or not _TYPES.issuperset(map(type, tensors)) or not known.issuperset(map(id, children)):
        return None
    return _tree(parts, names, tensors, chosen)


def _tree(parts: list[nn.Module], names: Columns, tensors: list[Tensor], chosen: list[bool]) -> TreeState | None:
    try:
        form = _FORM_ELSEWHERE if devices.accelerator_in_use() else _FORM
        return TreeState(parts, names, chosen, tensors, [list(map(column, tensors)) for column in form])
    except (RuntimeError, NotImplementedError):
        return None


def _named(parts: list[nn.Module]) -> tuple[list[Any], Columns]:
    """What the tables of modules hold, in order, and what tells it from what they held before."""
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
