"""What a tree of modules held when it was last read, and a cheap way to say that it holds the same still.

It does where the same names lead to tensors of the same form at the same addresses, and no byte there is another: the
kernel says so of the large ones, and the small ones are read, all in one go, as is all that lies on a device, which
has been read before it comes to a plan.  No module or tensor is kept for it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from xxhash import xxh3_128

from pytest_evalmode.observe.modules import Parts
from pytest_evalmode.observe.state import devices, memory
from pytest_evalmode.observe.state.fingerprint import LARGE_ELEMENTS, place_of

_TYPES = {nn.Parameter, Tensor}
# An address alone says that a tensor is a block of memory: others have none, and raise.
_FORM = (Tensor.data_ptr, Tensor.is_contiguous, Tensor.is_neg, attrgetter("dtype"), attrgetter("shape"))
_FORM_ELSEWHERE = (*_FORM, attrgetter("device"))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The names in a tree and the form of its tensors, column by column, and where these lie."""

    names: list[object]
    form: list[list[Any]]
    large: dict[memory.Range, None]
    small: list[ctypes.Array[ctypes.c_char]]
    """To be looked at only while the form is what it was."""
    digest: bytes
    """Of the small ones."""
    there: bytes | None
    """The digest of what devices said; None where nothing lies on one."""


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """A tree as it is now."""

    names: list[object]
    tensors: list[Tensor]
    form: list[list[Any]]

    def agrees(self, plan: Plan, there: Mapping[int, bytes]) -> bool:
        """Whether this tree is the one of a plan, bit for bit, of which devices say what is `there`, by `id`."""
        return (
            self.names == plan.names
            and self.form == plan.form
            and self._told(there) == plan.there
            and _digest(plan.small) == plan.digest
            and len(memory.known(plan.large)) == len(plan.large)
        )

    def plan(self, there: Mapping[int, bytes]) -> Plan | None:
        """What to compare with later, taken before the tree is read; None where a tensor is more than its bytes."""
        if not all(place_of(tensor, tensor.dtype) for tensor in self.tensors):
            return None
        large: dict[memory.Range, None] = {}
        small: list[ctypes.Array[ctypes.c_char]] = []
        for tensor in self.tensors:
            if id(tensor) in there:
                continue
            if not tensor.is_cpu:
                return None
            if tensor.numel() >= LARGE_ELEMENTS:
                large[tensor.data_ptr(), tensor.nbytes] = None
            else:
                small.append((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
        if large and memory.memory() is None:
            return None
        return Plan(self.names, self.form, large, small, _digest(small), self._told(there))

    def _told(self, there: Mapping[int, bytes]) -> bytes | None:
        return _digest(map(there.__getitem__, filter(there.__contains__, map(id, self.tensors)))) if there else None


def outline(parts: Parts, *, passing: bool) -> Outline | None:
    """What can be compared with a plan; None of a tree of other things than plain tensors.  Be `undisturbed`."""
    names: list[object] = []
    found: list[Tensor | None] = []
    for path, part in parts:
        parameters, buffers = part._parameters, part._buffers
        not_saved = getattr(part, "_non_persistent_buffers_set", ()) if buffers else ()
        if not_saved and not passing:
            buffers = {name: tensor for name, tensor in buffers.items() if name not in not_saved}
        names += (path, type(part), len(parameters), len(buffers), *parameters.keys(), *buffers.keys(), *not_saved)
        if parameters:
            found += parameters.values()
        if buffers:
            found += buffers.values()
    names += [i for i, tensor in enumerate(found) if tensor is None]
    tensors = [tensor for tensor in found if tensor is not None]
    if not tensors or not _TYPES.issuperset(map(type, tensors)):
        return None
    form = _FORM_ELSEWHERE if devices.in_use() else _FORM
    try:
        return Outline(names, tensors, [list(map(column, tensors)) for column in form])
    except (RuntimeError, NotImplementedError):
        return None


def _digest(blocks: Iterable[ctypes.Array[ctypes.c_char] | bytes]) -> bytes:
    digest = xxh3_128()
    deque(map(digest.update, blocks), maxlen=0)
    return digest.digest()
