"""The names of torch, CPython and the kernel that have no guarantee to stay, each with what is lost without it.

A name that does not exist has a fallback here, so that its absence costs one feature and not the guard. Private
functions that are replaced while a window is open are in the table of `patches.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pkgutil import resolve_name
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy as is_lazy

OPTIONAL: dict[str, str] = {}
"""What is lost without each name that is imported here."""


def resolve(name: str, fallback: object = None) -> Any:
    """Return the object of a name such as `"torch.nn:Module.train"`, or the fallback if it does not exist."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError):
        return fallback


def _find(name: str, lost: str, fallback: object) -> Any:
    OPTIONAL[name] = lost
    return resolve(name, fallback)


class _NoType:
    """A type without instances, in place of one that does not exist."""


class _UnknownStorage:
    """A reference to a storage of which nothing is known: its memory is never tracked for long."""

    cdata = 0

    def __init__(self, storage: object) -> None: ...

    def expired(self) -> bool:
        return True


# --- torch: graphs

if TYPE_CHECKING:
    from torch._ops import OpOverload as OpOverload
    from torch.jit import ScriptModule as ScriptModule
else:
    OpOverload = _find("torch._ops:OpOverload", "exported graphs are judged by their training flag", _NoType)
    ScriptModule = _find("torch.jit:ScriptModule", "what the graphs of scripted models do", _NoType)

EXPORT_CODE: object = _find("torch.export:export.__code__", "exports in training mode", None)
TRACE_MODULE_CODE: object = _find("torch.jit:trace_module.__code__", "jit traces in training mode", None)
is_tracing: Callable[[], bool] = _find(
    "torch.jit:is_tracing", "that a forward only makes a TorchScript graph, if no frame of torch shows it", bool
)

# --- torch: modules

BatchNorm: type[nn.modules.batchnorm._BatchNorm] = _find(
    "torch.nn.modules.batchnorm:_BatchNorm",
    "batch statistics of batch norms that derive from none of torch's public classes",
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)
save_to_state_dict: object = _find(
    "torch.nn:Module._save_to_state_dict", "the weights of quantized modules that are not tensors", None
)

# --- torch: autograd and modes

set_grad_enabled: Callable[[bool], object] = _find(
    "torch._C:_set_grad_enabled", "reading where the test has patched torch's own", torch.set_grad_enabled
)
peek_interpreter_stack: Callable[[], object] = _find(
    "torch._C._functorch:peek_interpreter_stack", "whether tensors inside vmap() require grad", lambda: None
)
is_functorch_wrapped_tensor: Callable[[Tensor], bool] = _find(
    "torch._C._functorch:is_functorch_wrapped_tensor", "the content of tensors inside vmap()", lambda tensor: False
)
get_unwrapped: Callable[[Tensor], Tensor] = _find(
    "torch._C._functorch:get_unwrapped", "the content of tensors inside vmap()", lambda tensor: tensor
)
tree_leaves: Callable[[object], list[object]] = _find(
    "torch.utils._pytree:tree_leaves", "which tensors in lists and dicts require grad", lambda value: [value]
)
disable_torch_function: Callable[[], AbstractContextManager[object]] = _find(
    "torch._C:DisableTorchFunction", "hiding reads from the test's TorchFunctionMode", nullcontext
)
disable_dispatch_modes: Callable[[], AbstractContextManager[object]] = _find(
    "torch.utils._python_dispatch:_disable_current_modes", "hiding reads from the test's TorchDispatchMode", nullcontext
)
function_modes: Callable[[], list[object]] = _find(
    "torch.overrides:_get_current_function_mode_stack", "that a test left another default device", list
)
DeviceContext: type[torch.utils._device.DeviceContext] = _find(
    "torch.utils._device:DeviceContext", "that a test left another default device", _NoType
)

# --- torch: memory

is_fake: Callable[[object], bool] = _find(
    "torch._subclasses.fake_tensor:is_fake", "models whose tensors are fake", lambda tensor: False
)
storage_use_count: Callable[[int], int] = _find(
    "torch._C:_storage_Use_Count", "that an input changed which only its views refer to", lambda storage: 0
)
# Torch has no type hints for it.
StorageWeakRef: Any = _find(
    "torch.multiprocessing.reductions:StorageWeakRef", "speed: more tensors are read each time", _UnknownStorage
)

# --- CPython and the kernel

current_frames: Callable[[], dict[int, FrameType]] = _find(
    "sys:_current_frames", "the line of a forward on another thread, and which threads may draw", dict
)
fcntl: Any = _find("fcntl", "speed: writes to memory are not tracked, so every tensor is read each time", None)

MAPS = "/proc/self/maps"
PAGEMAP = "/proc/self/pagemap"
MAX_MAP_COUNT = "/proc/sys/vm/max_map_count"

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
