"""A tensor -> what tells it apart, bit for bit.

A small tensor keeps its bytes, so that a message can say how far it moved; a large one a 128-bit xxh3 digest of them.
The bytes are read where they lie, without a copy; on an accelerator it is the accelerator that reads them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, empty, empty_strided, frombuffer, is_grad_enabled
from torch._C import DisableTorchFunction, _set_grad_enabled
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes
from xxhash import xxh3_128, xxh3_128_digest

from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.digests import block_type, digest
from pytest_evalmode.observe.state.memory_layout import (
    as_dense_block,
    components,
    host_address,
    is_dense,
    is_sharded,
    is_strided,
)

MAX_VALUE_BYTES = 8192
"""The largest tensor that is kept by value: the 2048 channels of a wide batch norm in float32."""


class Fingerprint(NamedTuple):
    """What a tensor was."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...] | None
    """How its elements lie in memory; None where they lie in order."""
    bits: bytes
    """The bytes themselves where `kept`, else their digest."""
    has_values: bool
    size: int
    """How many bytes were read."""
    initialized: bool = True
    sharded: bool = False
    """Whether this is the part of a larger tensor that lies here."""


_new = tuple.__new__
_CPU = torch.device("cpu")


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether this is one indeed: a mock with the spec of a tensor passes for one."""
    return issubclass(type(value), Tensor)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No mode of the user's sees what is done inside, autograd records none of it, and no finalizer runs in between."""
    collecting, recording = gc.isenabled(), is_grad_enabled()
    gc.disable()  # thousands of fingerprints would have it go through all objects there are
    try:
        # `DisableTorchFunction` is what torch's documentation on extending it names; it covers modes and subclasses.
        with _disable_current_modes(), DisableTorchFunction():
            _set_grad_enabled(False)  # `no_grad` looks up in torch, as it enters, what a test may have patched
            try:
                yield
            finally:
                _set_grad_enabled(recording)
    finally:
        if collecting:
            gc.enable()


def fingerprint_of(tensor: Tensor, store_values: bool = True, known: bytes | None = None) -> Fingerprint:
    """Read a tensor of any dtype, layout or subclass; the caller is `undisturbed`.

    `found` is what `digests` or `brought` found, where it has been read already.
    """
    dtype = tensor.dtype
    address = host_address(tensor, dtype)
    if not address:
        return _unusual(tensor, store_values, known)
    size = tensor.nbytes
    kept = store_values and size <= MAX_VALUE_BYTES
    bits = known or (block_type(size).from_address(address).raw if kept else digest(address, size))
    # Thousands of these are made: the constructor of a named tuple would take a third of the time.
    return _new(Fingerprint, (tensor.shape, dtype, _CPU, None, bits, kept, size, True, False))


def is_unchanged(before: Fingerprint, now: Fingerprint, tensor: Tensor) -> bool:
    """Whether a tensor still holds what it held; how it lies in memory does not count."""
    if before.initialized != now.initialized or before[:3] != now[:3]:
        return False
    if before.sharded != now.sharded and before.size != now.size:
        return True  # FSDP has gathered it, or let go of it again: a part and the whole cannot be compared
    if before.strides == now.strides:
        return before.bits == now.bits
    arranged = empty(before.shape, dtype=before.dtype, device=before.device)
    if before.strides is not None:
        arranged = empty_strided(before.shape, before.strides, dtype=before.dtype, device=before.device)
    return fingerprint_of(arranged.copy_(tensor), before.has_values).bits == before.bits


def stored_values(print_: Fingerprint) -> Tensor | None:
    """The tensor that was, where it was kept by value: flat, in the order of its memory."""
    if not print_.has_values or not print_.bits:
        return None
    return frombuffer(bytearray(print_.bits), dtype=print_.dtype)


def _unusual(tensor: Tensor, keep: bool, found: bytes | None) -> Fingerprint:
    if found is not None and not is_sharded(tensor):
        return _strided(tensor, keep, found)  # `brought` has seen to all that follows
    if is_lazy(tensor):
        return Fingerprint((), tensor.dtype, tensor.device, None, b"", False, 0, initialized=False)
    if is_strided(tensor):
        return _strided(tensor, keep, found)
    if is_functorch_wrapped_tensor(tensor):
        return fingerprint_of(get_unwrapped(tensor), keep)
    if is_sharded(tensor):
        local = fingerprint_of(cast(Any, tensor)._local_tensor, keep, found)
        return local._replace(shape=tuple(tensor.shape), sharded=True)
    summed, size = xxh3_128(), 0
    for name, value in components(tensor):
        inner = fingerprint_of(value, store_values=False) if isinstance(value, Tensor) else None
        summed.update(f"{name} {value if inner is None else inner[:4]}".encode())
        if inner is not None:
            summed.update(inner.bits)
            size += inner.size
    shape = () if tensor.is_nested else tuple(tensor.shape)
    return Fingerprint(shape, tensor.dtype, tensor.device, None, summed.digest(), False, size)


def _strided(tensor: Tensor, keep: bool, found: bytes | None) -> Fingerprint:
    """A tensor whose memory is not simply its elements in order, or is not the host's."""
    size = tensor.nbytes
    kept = keep and size <= MAX_VALUE_BYTES
    if devices.is_on_device(tensor):
        data = devices.read([(0, as_dense_block(tensor))])[0] if found is None else found
        bits = data if kept else xxh3_128_digest(data)
    else:
        whole = as_dense_block(tensor)
        address = whole.data_ptr()
        bits = block_type(size).from_address(address).raw if kept else digest(address, size)
    strides = None if tensor.is_contiguous() or not is_dense(tensor) else tensor.stride()
    return _new(Fingerprint, (tensor.shape, tensor.dtype, tensor.device, strides, bits, kept, size, True, False))
