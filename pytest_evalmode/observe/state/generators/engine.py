"""The state of torch's generator on the CPU, read where it lies.

`get_state()` makes a tensor of 5 kB, and a forward asks up to ten times.  The generator itself holds half as much, and
to look at that costs next to nothing.  Where it lies is found out on a generator of our own, and it is read there only
if that says just what `get_state()` says; everywhere else that is asked.

The order of the fields is that of `at::mt19937_data_pod` and `at::CPUGeneratorImpl`, which no documentation promises.
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
"""So far into a generator its engine is looked for."""


class Engine(Structure):
    """What a generator holds."""

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


class Told(Structure):
    """The same in the order in which `get_state()` tells it."""

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


Lies = Array[c_char]
"""The memory of an engine."""

_block = c_char * sizeof(Engine)
_SEEDED, _NEXT, _FLOAT, _DOUBLE = (getattr(Engine, name).offset for name in ("seeded", "next", "float", "double"))
_END = Engine.words.offset + Engine.words.size
_HAS_FLOAT, _HAS_DOUBLE = Engine.has_float.offset, Engine.has_double.offset


def state() -> bytes:
    """What the default generator holds, to be compared by `same`.  Dispatches no operator."""
    lies = _default()
    return lies.raw if lies is not None else asked(default_generator)


def same(before: bytes, now: bytes) -> bool:
    """Whether a generator has not moved between two states of it."""
    return before == now or (len(before) == len(now) == sizeof(Engine) and read(before) == read(now))


def read(data: bytes) -> bytes:
    """What an engine holds, but for padding and for normals that have been used."""
    found = data[: _SEEDED + 1] + data[_NEXT:_END]
    if data[_HAS_FLOAT]:
        found += b"float" + data[_FLOAT:_HAS_FLOAT]
    if data[_HAS_DOUBLE]:
        found += b"double" + data[_DOUBLE:_HAS_DOUBLE]
    return found


def asked(generator: Generator) -> bytes:
    """What a generator tells."""
    tensor = generator.get_state()
    return string_at(tensor.data_ptr(), tensor.numel())


@cache
def _default() -> Lies | None:
    found = place(Generator())
    return None if found is None else at(default_generator, found)


def at(generator: Generator, place: int) -> Lies:
    """The memory of a generator's engine."""
    return _block.from_address(_address(generator) + place)


def place(generator: Generator) -> int | None:
    """How far into a generator its engine lies; None where it is not what it is known to be."""
    tensor = generator.get_state()
    if tensor.numel() != sizeof(Told):
        return None
    try:
        with open(_MEMORY, "rb", buffering=0) as memory:  # to read too far there is an error, and no crash
            head = os.pread(memory.fileno(), _HEAD, _address(generator))
    except (OSError, AttributeError):
        return None
    found = head.find(_words(tensor)) - Engine.words.offset
    if not 0 < found <= len(head) - sizeof(Engine):
        return None
    lies = at(generator, found)
    return found if all(_agrees(generator, lies, seed) for seed in range(4)) else None


def _agrees(generator: Generator, lies: Lies, seed: int) -> bool:
    """Whether an engine holds what its generator is told to."""
    generator.manual_seed(seed)
    tensor = generator.get_state()
    told = Told.from_address(tensor.data_ptr())
    told.left, told.next = 624 - seed, seed + 1
    told.float, told.has_float = 3 + seed, seed in (1, 3)
    told.double, told.has_double = 5 + seed, seed in (2, 3)
    generator.set_state(tensor)
    numbers = told.seed, told.left, bool(told.seeded), told.next
    words = (c_uint32 * _WORDS)(*told.words)
    engine = Engine(*numbers, words, 0, told.float, told.has_float, told.double, bool(told.has_double))
    return read(lies.raw) == read(bytes(engine))


def _address(generator: Generator) -> int:
    address: int = cast(Any, generator)._cdata
    return address


def _words(tensor: Tensor) -> bytes:
    return bytes((c_uint32 * _WORDS)(*Told.from_address(tensor.data_ptr()).words))
