"""What kind of memory a tensor is: a block of bytes, one seen through strides, or what wraps others.

No operator is dispatched for the common layouts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

_STRIDED = torch.strided
_TYPES = (nn.Parameter, Tensor)
# Of these a contiguous tensor is its bytes.  Left out: quantised ones, which have a scale, and complex ones, which may
# be conjugated by a flag.
_PLAIN_DTYPES = frozenset(
    value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype) and not value.is_complex and not str(value).startswith("torch.q")
)


def host_address(tensor: Tensor, dtype: torch.dtype) -> int:
    """Where a tensor lies on the host that is no more than its bytes in order; 0 of any other."""
    return data_address(tensor, dtype) if tensor.is_cpu else 0


def data_address(tensor: Tensor, dtype: torch.dtype) -> int:
    """The same on any device, of which this is an address."""
    if (
        type(tensor) in _TYPES
        and dtype in _PLAIN_DTYPES
        and tensor.layout is _STRIDED
        and not (tensor.is_nested or tensor.is_neg())
        and tensor.is_contiguous()
    ):
        try:
            return tensor.data_ptr()
        except RuntimeError:  # what functorch has wrapped looks like a tensor and has no memory
            pass
    return 0


def is_strided(tensor: Tensor) -> bool:
    """Whether this is one block of memory seen through strides; a subclass is where it does not wrap others."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta or is_fake(tensor))
        and not hasattr(tensor, "__tensor_flatten__")
        and _has_memory(tensor)
    )


def is_sharded(tensor: Tensor) -> bool:
    """Whether only a part of a tensor is here; a DTensor can be met only where its module was imported already."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _has_memory(tensor: Tensor) -> bool:
    """Whether there is something to read: not where FSDP has released it, nor in what only looks like a tensor."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except (RuntimeError, NotImplementedError):
        return False


def as_dense_block(tensor: Tensor) -> Tensor:
    """A tensor as one block of memory, a copy where it is none."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain if is_dense(tensor) else plain.contiguous()


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a block of memory without gap or overlap, in whatever order."""
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
    """What a tensor without a block of its own is made of, by name and in order."""
    if tensor.is_nested and tensor.layout is torch.jagged:
        # Not what it flattens to: that grows by the lengths that it finds out about itself when it is used.
        inside = cast(Any, tensor)
        yield from (("values", inside._values), ("offsets", inside._offsets), ("lengths", inside._lengths))
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
        yield "version", tensor._version  # nothing to read: what torch counts is all there is
