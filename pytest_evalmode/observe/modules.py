"""A module and what is beneath it: walked, named as a person would, asked what it holds."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

# Links from a wrapper to what it wraps: torch.compile, FSDP1, activation checkpointing.  DDP's and DataParallel's is
# `module`, a name that others use too: it counts where the wrapper holds nothing else.
_WRAPPED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LINKS = _WRAPPED | {"module"}

_SAVES = nn.Module._save_to_state_dict


@dataclass(frozen=True, slots=True)
class ModuleTables:
    """The tables of a module, which outlive it for as long as they are held.  They hold its parts, but not itself."""

    _parameters: Any
    _buffers: Any
    _modules: Any
    _non_persistent_buffers_set: Any
    packed_weights: Mapping[str, Any]


NamedModules = list[tuple[str, Any]]
"""A module and all beneath it by qualified name: modules, of which the first may be the remains of one."""


def tables_of(module: nn.Module) -> ModuleTables:
    """What is needed to look at the state of a module once it has died."""
    passing = getattr(module, "_non_persistent_buffers_set", ())
    return ModuleTables(module._parameters, module._buffers, module._modules, passing, packed_weights(module))


def python_module(thing: object) -> str:
    """The name of the module that a class or function comes from; a class may have set it to None."""
    name = getattr(thing, "__module__", None)
    return name if isinstance(name, str) else ""


def is_initialized(value: object) -> TypeGuard[nn.Module]:
    """Whether this is a module whose `Module.__init__` has run, among modules and None."""
    return value is not None and (
        "_modules" in vars(value) or isinstance(value, ScriptModule)
    )  # which has it elsewhere


def training_flag(module: nn.Module) -> bool | None:
    """What a module says of itself as `training`; None where it has no such flag, or one that cannot be read."""
    try:
        return getattr(module, "training", None)
    except Exception:  # a property of the user's
        return None


def all_modules(module: nn.Module) -> list[nn.Module]:
    """A module and all beneath it, each once; as `module.modules()` does, several times as fast."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            if part._modules:
                waiting.extend(reversed([child for child in part._modules.values() if is_initialized(child)]))
    return list(found.values())


def walk(module: nn.Module | ModuleTables, skip: Container[int] = ()) -> NamedModules:
    """A module and all beneath it with their qualified names: `named_modules()`, but for the links of wrappers.

    Not the parts to `skip`, by `id`, nor what is beneath them.
    """
    found: dict[int, tuple[str, Any]] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        pair = path, part = waiting.pop()
        key = id(part)
        if key in found or key in skip:
            continue
        found[key] = pair
        children = part._modules
        if children:
            for name, child in reversed(list(children.items())):
                if is_initialized(child):
                    inner = path if name in _LINKS and _is_link(part, name) else f"{path}.{name}" if path else name
                    waiting.append((inner, child))
    return list(found.values())


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside `torch.compile`'s, DDP's and other shells that hold nothing of their own."""
    while len(module._modules) == 1:
        ((name, child),) = module._modules.items()
        if child is None or not _is_link(module, name):
            break
        module = child
    return module


def is_torch_wrapper(module: nn.Module) -> bool:
    """Whether this is a wrapper of torch's own, which may keep books: DDP notes that it has run, say."""
    return python_module(type(module)).startswith("torch.") and unwrap(module) is not module


def is_metric(module: nn.Module) -> bool:
    """Whether this is there to count, as its methods tell: torchmetrics counts in plain attributes."""
    return all(callable(getattr(type(module), name, None)) for name in ("update", "compute", "reset"))


def computed_attributes(module: nn.Module) -> set[str]:
    """Attributes that torch computes anew before each forward from what it saves: a weight normed, or pruned."""
    hooks = [
        hook for hook in module._forward_pre_hooks.values() if python_module(type(hook)).startswith("torch.nn.utils.")
    ]
    return {vars(hook).get("name") or vars(hook).get("_tensor_name", "") for hook in hooks}


def _is_link(module: nn.Module | ModuleTables, name: str) -> bool:
    if name in _WRAPPED:
        return True
    return name == "module" and len(module._modules) == 1 and not module._parameters and not module._buffers


def type_name(module: nn.Module) -> str:
    """The name of the class that the user wrote, of a scripted, sharded or parametrized module too."""
    inner = unwrap(module)
    if isinstance(inner, ScriptModule):
        return str(inner.original_name)
    kind = type(inner)
    while _is_made_by_torch(kind):
        kind = kind.__bases__[-1]
    return kind.__name__


def _is_made_by_torch(kind: type) -> bool:
    """Whether torch made this class of another as it ran, as FSDP makes `FSDPNet`: such a class is in no module."""
    return python_module(kind).startswith("torch.") and not hasattr(sys.modules.get(kind.__module__), kind.__name__)


def has_own_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def has_lazy_tensors(module: nn.Module) -> bool:
    """Whether this very module has yet to give a tensor of its own its shape, and to fill it: a lazy layer."""
    return any(
        tensor is not None and is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())
    )


def is_layer_with_weights(module: nn.Module) -> bool:
    """Whether this very module holds parameters and can run with them: a bare `nn.Module`, as fx makes them, cannot."""
    return type(module) is not nn.Module and has_own_parameters(module)


def has_own_tensors(module: nn.Module) -> bool:
    """Whether this very module holds a tensor: a loss without weights has an empty place for them."""
    return any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))


def packed_weights(part: nn.Module | ModuleTables) -> Mapping[str, Any]:
    """The weights of torch's quantised modules: they are saved, though they are plain attributes and no tensors."""
    if isinstance(part, ModuleTables):
        return part.packed_weights
    saves = type(part)._save_to_state_dict
    if saves is _SAVES or not python_module(saves).startswith("torch.ao."):
        return {}
    return {name: value for name, value in vars(part).items() if isinstance(value, torch.ScriptObject)}


def has_tensors(module: nn.Module) -> bool:
    """Whether there is a tensor in it that could change."""
    return any(map(has_own_tensors, all_modules(module)))


def is_model(parts: NamedModules) -> bool:
    """Whether there are parameters in it; a graph counts, which may have folded its own into constants."""
    if isinstance(parts[0][1], ScriptModule | GraphModule):
        return True
    return any(has_own_parameters(part) or packed_weights(part) for _, part in parts)


def is_opaque(module: nn.Module) -> bool:
    """Whether the forwards of its parts cannot be seen: they are compiled into one."""
    return isinstance(module, ScriptModule) or "_orig_mod" in module._modules or module._compiled_call_impl is not None
