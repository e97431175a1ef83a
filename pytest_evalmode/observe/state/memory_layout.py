"""How a tensor is laid out: a contiguous block of bytes, one with strides, or several inner tensors.

For the common layouts no operator is dispatched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from pytest_evalmode.observe.private_api import is_fake

_STRIDED = torch.strided
_TYPES = (nn.Parameter, Tensor)
# The content of a contiguous tensor of such a dtype is just its bytes.  A quantized tensor also has a scale, and a
# complex one may be conjugated by a flag.
_PLAIN_DTYPES = frozenset(
    value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype) and not value.is_complex and not str(value).startswith("torch.q")
)


def host_address(tensor: Tensor, dtype: torch.dtype) -> int:
    """Return the address of a plain contiguous tensor in host memory, else 0."""
    return data_address(tensor, dtype) if tensor.is_cpu else 0


def data_address(tensor: Tensor, dtype: torch.dtype) -> int:
    """Return the address of a plain contiguous tensor on any device, else 0."""
    if (
        type(tensor) in _TYPES
        and dtype in _PLAIN_DTYPES
        and tensor.layout is _STRIDED
        and not (tensor.is_nested or tensor.is_neg())
        and tensor.is_contiguous()
    ):
        try:
            return tensor.data_ptr()
        except RuntimeError:  # a functorch wrapper has no memory
            pass
    return 0


def is_strided(tensor: Tensor) -> bool:
    """Return whether a tensor is one block of memory with strides; a subclass counts unless it wraps other tensors."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta or is_fake(tensor))
        and not hasattr(tensor, "__tensor_flatten__")
        and _has_memory(tensor)
    )


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor: only a shard of it is local."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported: no DTensor exists
    return module is not None and isinstance(tensor, module.DTensor)


def _has_memory(tensor: Tensor) -> bool:
    """Return whether there is memory to read.  FSDP may have released it, and some wrappers have none."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except (RuntimeError, NotImplementedError):
        return False


def as_dense_block(tensor: Tensor) -> Tensor:
    """Return a tensor as one block of memory, as a copy if necessary."""
    resolved = tensor.detach().resolve_conj().resolve_neg()
    return resolved if is_dense(tensor) else resolved.contiguous()


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a block of memory without gaps or overlap, in any order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def components(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the parts, by name, of a tensor that is not one block of memory."""
    if tensor.is_nested and tensor.layout is torch.jagged:
        # `__tensor_flatten__` would also return the sequence lengths that it computes and caches when it is used.
        jagged = cast(Any, tensor)
        yield from (("values", jagged._values), ("offsets", jagged._offsets), ("lengths", jagged._lengths))
    elif hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        yield from ((name, getattr(tensor, name)) for name in names)
    elif tensor.is_nested:
        yield "values", tensor.detach().values()
        yield "sizes", tensor._nested_tensor_size()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (("crow", tensor.crow_indices()), ("col", tensor.col_indices()), ("values", tensor.values()))
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (("ccol", tensor.ccol_indices()), ("row", tensor.row_indices()), ("values", tensor.values()))
    elif tensor.layout is torch.sparse_coo:
        yield from (("indices", tensor._indices()), ("values", tensor._values()))
    elif tensor.is_quantized:
        yield "values", tensor.int_repr()
        yield "scheme", tensor.qscheme()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield from (("scale", tensor.q_scale()), ("zero", tensor.q_zero_point()))
        else:
            yield "scale", tensor.q_per_channel_scales()
            yield "zero", tensor.q_per_channel_zero_points()
            yield "axis", tensor.q_per_channel_axis()
    elif tensor.is_mkldnn:
        yield "values", tensor.to_dense()
    elif not tensor.is_meta and not tensor.is_inference():
        yield "version", tensor._version  # not readable: only the version counter is left
