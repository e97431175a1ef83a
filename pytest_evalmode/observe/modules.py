"""Helpers for a module and its submodules: iteration, names and simple properties."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.fx import GraphModule

from pytest_evalmode.observe.private_api import ScriptModule, is_lazy, save_to_state_dict

# Names under which a wrapper stores the module that it wraps: torch.compile, FSDP1, activation checkpointing. DDP and
# DataParallel use `module`, which other classes use too: it counts if the wrapper holds nothing else.
_WRAPPED_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LINK_NAMES = _WRAPPED_NAMES | {"module"}

TORCH_ATTRIBUTES = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
"""Attributes that torch sets in every module."""
DROPOUTS = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout


@dataclass(frozen=True, slots=True)
class ModuleTables:
    """The dicts of a module, which outlive it while they are referenced: they refer to its submodules, not to it."""

    _parameters: Any
    _buffers: Any
    _modules: Any
    _non_persistent_buffers_set: Any
    packed_weights: Mapping[str, Any]


NamedModules = list[tuple[str, Any]]
"""A module and all its submodules with their qualified names. The first may be the `ModuleTables` of a module."""


def tables_of(module: nn.Module) -> ModuleTables:
    """Return the dicts that are needed to read the state of a module after it has been garbage collected."""
    non_persistent = getattr(module, "_non_persistent_buffers_set", ())
    return ModuleTables(module._parameters, module._buffers, module._modules, non_persistent, packed_weights(module))


def python_module(definition: object) -> str:
    """Return the name of the Python module that defines a class or function, or "" if it is not set."""
    name = getattr(definition, "__module__", None)
    return name if isinstance(name, str) else ""


def is_initialized(value: object) -> TypeGuard[nn.Module]:
    """Return whether `Module.__init__` has run for a module; False for None."""
    # A ScriptModule stores its submodules elsewhere.
    return value is not None and ("_modules" in vars(value) or isinstance(value, ScriptModule))


def training_flag(module: nn.Module) -> bool | None:
    """Return the `training` attribute of a module, or None if it is missing or cannot be read."""
    try:
        return getattr(module, "training", None)
    except Exception:  # a property of the user's class may raise anything
        return None


def all_modules(module: nn.Module) -> list[nn.Module]:
    """Return a module and its submodules, each once: the same as `module.modules()`, but several times faster."""
    result: dict[int, nn.Module] = {}
    pending = [module]
    while pending:
        part = pending.pop()
        if id(part) not in result:
            result[id(part)] = part
            if part._modules:
                pending.extend(reversed([child for child in part._modules.values() if is_initialized(child)]))
    return list(result.values())


def walk(module: nn.Module | ModuleTables, skip: Container[int] = ()) -> NamedModules:
    """Return the named modules of a module, without names that wrappers add and parts whose `id` is in `skip`."""
    result: dict[int, tuple[str, Any]] = {}
    pending: list[tuple[str, Any]] = [("", module)]
    while pending:
        pair = path, part = pending.pop()
        key = id(part)
        if key in result or key in skip:
            continue
        result[key] = pair
        children = part._modules
        if children:
            for name, child in reversed(list(children.items())):
                if is_initialized(child):
                    is_link = name in _LINK_NAMES and _is_link(part, name)
                    inner = path if is_link else f"{path}.{name}" if path else name
                    pending.append((inner, child))
    return list(result.values())


def path_as_code(root: nn.Module, path: str) -> str:
    """Return the path of a submodule as Python code after its root: `[2].conv` for `2.conv` in a `nn.Sequential`."""
    code, part = "", root
    for step in path.split("."):
        if step not in part._modules:
            part = unwrap(part)
        if step.isidentifier():
            code += f".{step}"
        elif isinstance(part, nn.ModuleDict):
            code += f'["{step}"]'
        else:
            code += f"[{step}]" if hasattr(type(part), "__getitem__") else f'.get_submodule("{step}")'
        child = dict(part._modules.items()).get(step)  # a ScriptModule's table has no get()
        part = part if child is None else child
    return code


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of `torch.compile`, DDP and others that hold nothing of their own."""
    while len(module._modules) == 1:
        ((name, child),) = module._modules.items()
        if child is None or not _is_link(module, name):
            break
        module = child
    return module


def is_torch_wrapper(module: nn.Module) -> bool:
    """Return whether a module is one of torch's wrappers, which may set attributes on themselves, as DDP does."""
    return python_module(type(module)).startswith("torch.") and unwrap(module) is not module


def is_metric(module: nn.Module) -> bool:
    """Return whether a module has the methods of a torchmetrics metric, which stores its counts in plain attributes."""
    return all(callable(getattr(type(module), name, None)) for name in ("update", "compute", "reset"))


def computed_attributes(module: nn.Module) -> set[str]:
    """Return attributes that torch computes from saved ones: for weight norm or pruning, or in a recurrent layer."""
    hooks = [
        hook for hook in module._forward_pre_hooks.values() if python_module(type(hook)).startswith("torch.nn.utils.")
    ]
    names = {vars(hook).get("name") or vars(hook).get("_tensor_name", "") for hook in hooks}
    return names | {"_flat_weights"} if isinstance(module, nn.RNNBase) else names


def _is_link(module: nn.Module | ModuleTables, name: str) -> bool:
    """Return whether a submodule of this name is the module that a wrapper wraps."""
    if name in _WRAPPED_NAMES:
        return True
    return name == "module" and len(module._modules) == 1 and not module._parameters and not module._buffers


def type_name(module: nn.Module) -> str:
    """Return the name of the class that the user wrote, also for a scripted, sharded or parametrized module."""
    inner = unwrap(module)
    if isinstance(inner, ScriptModule):
        return str(inner.original_name)
    cls = type(inner)
    while _is_made_by_torch(cls):
        cls = cls.__bases__[-1]
    return cls.__name__


def _is_made_by_torch(cls: type) -> bool:
    """Return whether torch created a class at run time, such as `FSDPNet`; no Python module contains such a class."""
    return python_module(cls).startswith("torch.") and not hasattr(sys.modules.get(cls.__module__), cls.__name__)


def has_own_parameters(module: nn.Module) -> bool:
    """Return whether a module itself, not a submodule, has parameters."""
    return any(parameter is not None for parameter in module._parameters.values())


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module itself, not of its submodules."""
    return [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]


def has_lazy_tensors(module: nn.Module) -> bool:
    """Return whether a module itself has parameters or buffers whose shape is still unknown, as in a lazy layer."""
    return any(map(is_lazy, own_tensors(module)))


def packed_weights(part: nn.Module | ModuleTables) -> Mapping[str, Any]:
    """Return the weights of one of torch's quantized modules, which are saved although they are not tensors."""
    if isinstance(part, ModuleTables):
        return part.packed_weights
    saves = getattr(type(part), "_save_to_state_dict", None)
    if saves is save_to_state_dict or not python_module(saves).startswith("torch.ao."):
        return {}
    return {name: value for name, value in vars(part).items() if isinstance(value, torch.ScriptObject)}


def has_tensors(module: nn.Module) -> bool:
    """Return whether a module or one of its submodules has a parameter or buffer."""
    return any(map(own_tensors, all_modules(module)))


def is_model(parts: NamedModules) -> bool:
    """Return whether a module is a model: it has parameters, or is a graph, whose parameters may be constants."""
    if isinstance(parts[0][1], ScriptModule | GraphModule):
        return True
    return any(has_own_parameters(part) or packed_weights(part) for _, part in parts)


def is_opaque(module: nn.Module) -> bool:
    """Return whether the forwards of a module's submodules cannot be observed, because they are compiled into one."""
    if isinstance(module, ScriptModule) or "_orig_mod" in module._modules:
        return True
    return getattr(module, "_compiled_call_impl", None) is not None
