"""Fingerprints of tensors, which are compared bit for bit.

The fingerprint of a small tensor has its bytes, so that a message can show its change; that of a large one has a
128-bit xxh3 digest.  Tensors are read in place, without a copy; the accelerator reads what is in its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, empty, empty_strided, frombuffer, is_grad_enabled
from xxhash import xxh3_128, xxh3_128_digest

from pytest_evalmode.observe.private_api import (
    disable_dispatch_modes,
    disable_torch_function,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_lazy,
    set_grad_enabled,
)
from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.digests import block_type, digest, signed_zero_width
from pytest_evalmode.observe.state.memory_layout import (
    as_dense_block,
    components,
    host_address,
    is_dense,
    is_sharded,
    is_strided,
)

MAX_VALUE_BYTES = 8192
"""The largest tensor whose bytes are stored: the 2048 channels of a wide batch norm in float32."""


class Fingerprint(NamedTuple):
    """The shape, dtype, device and content of a tensor when it was read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...] | None
    """The strides of the bytes that were read; None if these are in the order of the elements."""
    bits: bytes
    """The bytes if `has_values`, else their digest."""
    has_values: bool
    size: int
    """Number of bytes that were read."""
    initialized: bool = True
    sharded: bool = False
    """Whether it covers only the local shard of a distributed tensor."""


_new_tuple = tuple.__new__
_CPU = torch.device("cpu")


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor.  `isinstance()` is also true for a mock with the spec of a tensor."""
    return issubclass(type(value), Tensor)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide reads from user modes and autograd."""
    recording = is_grad_enabled()
    # `torch._C.DisableTorchFunction` is documented in "Extending PyTorch"; it covers modes and subclasses.
    with disable_dispatch_modes(), disable_torch_function():
        set_grad_enabled(False)  # `no_grad` calls functions of torch that a test may have patched
        try:
            yield
        finally:
            set_grad_enabled(recording)


def fingerprint_of(tensor: Tensor, store_values: bool = True, known: bytes | None = None) -> Fingerprint:
    """Read a tensor of any dtype, layout or subclass, and store its bytes if it is small.  Call it in `undisturbed()`.

    `known` is its digest or data, if `compute_digests` or `read_device_tensors` has read it already.
    """
    dtype = tensor.dtype
    address = host_address(tensor, dtype)
    if not address:
        return _unusual(tensor, store_values, known)
    size = tensor.nbytes
    has_values = store_values and size <= MAX_VALUE_BYTES
    # Thousands are made: no function is called for small ones, nor the constructor of the named tuple.
    bits = known or (block_type(size).from_address(address).raw if has_values else _digest(address, size, dtype))
    return _new_tuple(Fingerprint, (tensor.shape, dtype, _CPU, None, bits, has_values, size, True, False))


def has_same_bytes(before: Fingerprint, tensor: Tensor | None) -> bool:
    """Return whether a tensor surely has the bytes that were stored.  Dispatches no operator."""
    if tensor is None or tensor.shape != before.shape or tensor.dtype != before.dtype:
        return False
    address = host_address(tensor, before.dtype)
    return bool(address) and block_type(before.size).from_address(address).raw == before.bits


def is_unchanged(before: Fingerprint, now: Fingerprint, tensor: Tensor) -> bool:
    """Return whether a tensor has the same content as before.  Its layout in memory and signs of zeros do not count.

    The tensor is read again if its layout changed.
    """
    if before.initialized != now.initialized or before[:3] != now[:3]:
        return False
    if before.sharded != now.sharded and before.size != now.size:
        return True  # FSDP has gathered or released it: a shard cannot be compared with the whole
    if before.strides != now.strides:
        rearranged = empty(before.shape, dtype=before.dtype, device=before.device)
        if before.strides is not None:
            rearranged = empty_strided(before.shape, before.strides, dtype=before.dtype, device=before.device)
        now = fingerprint_of(rearranged.copy_(tensor), before.has_values)
    if before.bits == now.bits:
        return True
    old_values, new_values = stored_values(before), stored_values(now)
    return old_values is not None and new_values is not None and not bool(differences(old_values, new_values).any())


def differences(old: Tensor, new: Tensor) -> Tensor:
    """Return which elements of two flat tensors of one dtype differ: by their bits, but `-0.0` equals `0.0`."""
    size = old.element_size()
    changed = (old.view(torch.uint8) != new.view(torch.uint8)).view(-1, size).any(1)
    if not changed.any() or not (old.is_floating_point() or old.is_complex()):
        return changed
    try:
        return changed & ~(_numbers(old) == _numbers(new)).view(len(old), -1).all(1)
    except (RuntimeError, NotImplementedError):  # a dtype without conversions
        return changed


def _numbers(values: Tensor) -> Tensor:
    return torch.view_as_real(values.to(torch.complex128)) if values.is_complex() else values.to(torch.float64)


def stored_values(fingerprint: Fingerprint) -> Tensor | None:
    """Return the values of the tensor as a flat tensor, in the order of its memory; None if they were not stored."""
    if not fingerprint.has_values or not fingerprint.bits:
        return None
    return frombuffer(bytearray(fingerprint.bits), dtype=fingerprint.dtype)


def _digest(address: int, size: int, dtype: torch.dtype) -> bytes:
    return digest(address, size, signed_zero_width(address, size, dtype))


def _unusual(tensor: Tensor, store_values: bool, known: bytes | None) -> Fingerprint:
    if known is not None and not is_sharded(tensor):
        return _strided(tensor, store_values, known)  # `read_device_tensors` reads no other kinds
    if is_lazy(tensor):
        return Fingerprint((), tensor.dtype, tensor.device, None, b"", False, 0, initialized=False)
    if is_strided(tensor):
        return _strided(tensor, store_values, known)
    if is_functorch_wrapped_tensor(tensor):
        return fingerprint_of(get_unwrapped(tensor), store_values)
    if is_sharded(tensor):
        local = fingerprint_of(cast(Any, tensor)._local_tensor, store_values, known)
        return local._replace(shape=tuple(tensor.shape), sharded=True)
    digest_, size = xxh3_128(), 0
    for name, value in components(tensor):
        inner = fingerprint_of(value, store_values=False) if isinstance(value, Tensor) else None
        digest_.update(f"{name} {value if inner is None else inner[:4]}".encode())
        if inner is not None:
            digest_.update(inner.bits)
            size += inner.size
    shape = () if tensor.is_nested else tuple(tensor.shape)
    return Fingerprint(shape, tensor.dtype, tensor.device, None, digest_.digest(), False, size)


def _strided(tensor: Tensor, store_values: bool, known: bytes | None) -> Fingerprint:
    """Read a tensor with any strides, on any device."""
    size = tensor.nbytes
    has_values = store_values and size <= MAX_VALUE_BYTES
    if devices.is_on_device(tensor):
        data = devices.read([(0, as_dense_block(tensor))])[0] if known is None else known
        bits = data if has_values else xxh3_128_digest(data)
    else:
        block = as_dense_block(tensor)
        address = block.data_ptr()
        bits = block_type(size).from_address(address).raw if has_values else _digest(address, size, tensor.dtype)
    strides = None if tensor.is_contiguous() or not is_dense(tensor) else tensor.stride()
    shape, dtype, device = tensor.shape, tensor.dtype, tensor.device
    return _new_tuple(Fingerprint, (shape, dtype, device, strides, bits, has_values, size, True, False))
