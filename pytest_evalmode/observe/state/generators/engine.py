"""The state of torch's CPU generator, read from memory.

`get_state()` makes a tensor of 5 kB, and each forward needs the state up to ten times.  So the engine is located in the
memory of a new generator, and its memory is read if it matches `get_state()` there; else `get_state()` is called.

The order of the fields is that of `at::mt19937_data_pod` and `at::CPUGeneratorImpl`, which is not documented.
"""

from __future__ import annotations

import os
from ctypes import Array, Structure, c_bool, c_char, c_int32, c_int64, c_uint32, c_uint64, sizeof, string_at
from functools import cache
from typing import Any, cast

from torch import Generator, Tensor, default_generator

_WORDS = 624
_MEMORY = "/proc/self/mem"
_HEAD = 4096
"""The engine is searched for in this many bytes of a generator."""


class Engine(Structure):
    """The memory of a generator's engine."""

    _fields_ = [
        ("seed", c_uint64),
        ("left", c_int32),
        ("seeded", c_bool),
        ("next", c_uint32),
        ("words", c_uint32 * _WORDS),
        ("", c_uint32),
        ("float", c_uint32),
        ("has_float", c_bool),
        ("double", c_uint64),
        ("has_double", c_bool),
    ]


class SavedState(Structure):
    """The layout of the tensor that `get_state()` returns."""

    _fields_ = [
        ("seed", c_uint64),
        ("left", c_int32),
        ("seeded", c_int32),
        ("next", c_uint64),
        ("words", c_uint64 * _WORDS),
        ("x", c_uint64),
        ("double", c_uint64),
        ("rho", c_uint64),
        ("has_double", c_int64),
        ("float", c_uint32),
        ("has_float", c_bool),
    ]


Memory = Array[c_char]

_block = c_char * sizeof(Engine)
_SEEDED, _NEXT, _FLOAT, _DOUBLE = (getattr(Engine, name).offset for name in ("seeded", "next", "float", "double"))
_END = Engine.words.offset + Engine.words.size
_HAS_FLOAT, _HAS_DOUBLE = Engine.has_float.offset, Engine.has_double.offset


def state() -> bytes:
    """Return the state of the default generator, to compare with `same`.  Dispatches no operator."""
    memory = _default()
    return memory.raw if memory is not None else saved_state(default_generator)


def same(before: bytes, now: bytes) -> bool:
    """Return whether a generator drew nothing between two states."""
    return before == now or (len(before) == len(now) == sizeof(Engine) and read(before) == read(now))


def read(data: bytes) -> bytes:
    """Return the fields of an engine, without padding and without a cached normal that was already used."""
    fields = data[: _SEEDED + 1] + data[_NEXT:_END]
    if data[_HAS_FLOAT]:
        fields += b"float" + data[_FLOAT:_HAS_FLOAT]
    if data[_HAS_DOUBLE]:
        fields += b"double" + data[_DOUBLE:_HAS_DOUBLE]
    return fields


def saved_state(generator: Generator) -> bytes:
    """Return the bytes of `get_state()`."""
    tensor = generator.get_state()
    return string_at(tensor.data_ptr(), tensor.numel())


@cache
def _default() -> Memory | None:
    offset = find_offset(Generator())
    return None if offset is None else at(default_generator, offset)


def at(generator: Generator, offset: int) -> Memory:
    """Return the memory of a generator's engine."""
    return _block.from_address(_address(generator) + offset)


def find_offset(generator: Generator) -> int | None:
    """Return the offset of the engine in a generator's memory; None if its layout is not the known one."""
    tensor = generator.get_state()
    if tensor.numel() != sizeof(SavedState):
        return None
    try:
        with open(_MEMORY, "rb", buffering=0) as file:  # reading too far is an error there, not a crash
            head = os.pread(file.fileno(), _HEAD, _address(generator))
    except (OSError, AttributeError):
        return None
    offset = head.find(_words(tensor)) - Engine.words.offset
    if not 0 < offset <= len(head) - sizeof(Engine):
        return None
    memory = at(generator, offset)
    return offset if all(_matches(generator, memory, seed) for seed in range(4)) else None


def _matches(generator: Generator, memory: Memory, seed: int) -> bool:
    """Return whether the engine has the state that is set with `set_state()`."""
    generator.manual_seed(seed)
    tensor = generator.get_state()
    saved = SavedState.from_address(tensor.data_ptr())
    saved.left, saved.next = 624 - seed, seed + 1
    saved.float, saved.has_float = 3 + seed, seed in (1, 3)
    saved.double, saved.has_double = 5 + seed, seed in (2, 3)
    generator.set_state(tensor)
    numbers = saved.seed, saved.left, bool(saved.seeded), saved.next
    words = (c_uint32 * _WORDS)(*saved.words)
    engine = Engine(*numbers, words, 0, saved.float, saved.has_float, saved.double, bool(saved.has_double))
    return read(memory.raw) == read(bytes(engine))


def _address(generator: Generator) -> int:
    address: int = cast(Any, generator)._cdata
    return address


def _words(tensor: Tensor) -> bytes:
    return bytes((c_uint32 * _WORDS)(*SavedState.from_address(tensor.data_ptr()).words))
