"""Properties of a forward, read from its code: depends on the mode, may draw random numbers, disables autograd."""

from __future__ import annotations

import ast
import dis
import inspect
import os
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from pytest_evalmode.observe.model_code.draw_calls import (
    DrawCall,
    builds_drawing_module,
    draw_calls_in,
    mentions_draw,
    names_in,
    nodes_of,
)
from pytest_evalmode.observe.modules import all_modules, python_module

_NO_GRAD = frozenset({"no_grad", "inference_mode", "set_grad_enabled"})
_MODULE_CALLS = frozenset({"__call__", "_call_impl", "_wrapped_call_impl", "_wrapped_call"})
_NOT_FORWARD = frozenset({"__init__", "train", "eval", "training"})
_MAX_FUNCTIONS = 400
_EMPTY = CellType()


@dataclass(frozen=True, slots=True)
class Traits:
    """Properties of a forward, as far as its code shows."""

    reads_training: bool
    """It reads `self.training`."""
    may_draw: bool
    """It names a function that draws random numbers."""
    disables_grad: bool
    """It disables autograd itself."""


_traits: WeakKeyDictionary[type[nn.Module], tuple[list[ref[FunctionType] | None], Traits]] = WeakKeyDictionary()
"""The traits of a type, and its forward and `__call__` when they were read. Strong references would keep it alive."""


def module_traits(module: nn.Module) -> Traits:
    """Return the traits of a module: those of its type, unless the instance has its own `forward`."""
    return _read(type(module), *forwards_of(module)) if "forward" in vars(module) else type_traits(type(module))


def type_traits(cls: type[nn.Module]) -> Traits:
    """Return the traits of a type; its code is read once, and again if its forward or `__call__` was replaced."""
    forward = next(vars(base)["forward"] for base in cls.__mro__ if "forward" in vars(base))
    call = None if cls.__call__ is nn.Module.__call__ else inspect.unwrap(cls.__call__)
    functions = [_as_function(forward), _as_function(call)]
    known, traits = _traits.get(cls, ([], None))
    if traits is None or [each and each() for each in known] != functions:
        traits = _read(cls, forward, *_call_overrides(cls))
        _traits[cls] = [ref(function) if function else None for function in functions], traits
    return traits


def _call_overrides(cls: type[nn.Module]) -> list[FunctionType]:
    """Return the functions with which a type and its bases replace `nn.Module.__call__` without calling it."""
    calls = [call for call in definitions_in(cls.__mro__, "__call__") if bypasses_module_call(call)]
    return [inspect.unwrap(call) for call in calls]


def bypasses_module_call(call: object) -> bool:
    """Return whether a `__call__` does not call that of `nn.Module`, judging by its code."""
    function = inspect.unwrap(call) if callable(call) else None
    return isinstance(function, FunctionType) and _MODULE_CALLS.isdisjoint(_names(function.__code__))


def find_draw_calls(module: nn.Module, method: str = "") -> list[DrawCall]:
    """Return the calls in a module's forward or other method that may have drawn random numbers, the likeliest first.

    A call that does not depend on the mode is likelier than one that does.  Calls that cannot draw with the module's
    present mode and settings are left out.
    """
    functions = functions_of(module, method)
    attributes = dict(ChainMap(vars(module), *(dict(vars(base)) for base in type(module).__mro__)))
    for name in set().union(*(_stored_attributes(function.__code__) for function in functions)):
        attributes.pop(name, None)  # when the call ran, it may have had another value
    # If the module never reads its mode, the `training` argument of a helper does not depend on it.
    reads_mode = any("training" in _names(function.__code__) for function in functions)
    gated = _find_gated(functions, method or "forward")
    draws = dict.fromkeys(
        replace(draw, gated=reads_mode and (draw.gated or function.__name__ in gated))
        for function in functions
        for draw in draw_calls_in(function, attributes)
    )
    return sorted(draws, key=lambda draw: (draw.gated, draw.optional))


@lru_cache(maxsize=1024)
def _stored_attributes(code: CodeType) -> frozenset[str]:
    """Return the names of the attributes that a code object assigns."""
    return frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR")


def _find_gated(functions: Iterable[FunctionType], start: str) -> set[str]:
    """Return the names of functions that others only mention where the mode decides, or that only such ones mention."""
    mentions = [
        (function.__name__, name, is_gated)
        for function in functions
        for name, is_gated in names_in(function.__code__).items()
        if name not in (function.__name__, start)
    ]
    gated = {name for _, name, _ in mentions}
    while ungated := {name for caller, name, is_gated in mentions if not is_gated and caller not in gated} & gated:
        gated -= ungated
    return gated


def find_method_calls(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the submodules whose methods a forward uses without calling the submodule itself: `self.part.forward(x)`.

    If the code does not show whose `forward` it uses, that may be any submodule's.
    """
    calls: dict[tuple[nn.Module, str], None] = {}
    for function in functions_of(module):
        if function.__code__.co_filename.startswith(_TORCH):
            continue
        for owner, method in _attributes_in(function.__code__):
            part = module._modules.get(owner.removeprefix("self.")) if owner.startswith("self.") else None
            if part is not None and method not in _MODULE_ATTRIBUTES and definitions_in(type(part).__mro__, method):
                calls[part, method] = None
            elif part is None and method == "forward" and not _SELF.fullmatch(owner):
                calls.update({(inner, method): None for inner in all_modules(module)[1:]})
    return list(calls)


@lru_cache(maxsize=1024)
def _attributes_in(code: CodeType) -> Sequence[tuple[str, str]]:
    """Return the attributes of attributes, and each `forward`, in the source of a code object, with their owners."""
    return [
        (ast.unparse(node.value), node.attr)
        for node in nodes_of(code)
        if isinstance(node, ast.Attribute) and (isinstance(node.value, ast.Attribute) or node.attr == "forward")
    ]


_TORCH = os.path.dirname(os.path.dirname(nn.__file__)) + os.sep
_MODULE_ATTRIBUTES = frozenset(dir(nn.Module)) - {"forward"}
_SELF = re.compile(r"self|super\([^()]*\)")


def functions_of(module: nn.Module, method: str = "") -> list[FunctionType]:
    """Return the functions that a module's forward and hooks can reach, or those that another method can reach."""
    starts: list[Any]
    if method and method != "forward":
        starts = definitions_in(type(module).__mro__, method)[:1]
    else:
        own = [*vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        starts = [*filter(_as_function, own), *forwards_of(module)]
    return list(chain.from_iterable(_reachable(type(module), start) for start in starts))


def forwards_of(module: nn.Module) -> list[Any]:
    """Return the forward of a module as it is stored: that of a traced module is a descriptor that must not be called.

    If the instance has its own `forward` that hides what it calls, such as a mock, that of its type is included.
    """
    cls = type(module)
    own, of_type = vars(module).get("forward"), [inspect.getattr_static(cls, "forward"), *_call_overrides(cls)]
    if own is None:
        return of_type
    function = plain_function(own)
    return [own, *of_type] if function is None or hasattr(function, "mock") else [own]


def _read(owner: type[nn.Module], *forwards: Any) -> Traits:
    names: set[str] = set()
    may_draw = disables_grad = False
    for function in chain.from_iterable(_reachable(owner, forward) for forward in forwards):
        names |= _names(function.__code__)
        may_draw |= mentions_draw(function.__code__) or _builds_module(function)
        # A context manager used as a decorator runs in a wrapper defined in torch/utils/_contextlib.py.
        disables_grad |= function.__code__.co_filename.endswith("_contextlib.py")
    return Traits(
        reads_training="training" in names,
        may_draw=may_draw,
        # Torch's own layers use no_grad() only to initialize their weights.
        disables_grad=not python_module(owner).startswith("torch.nn.")
        and (disables_grad or not names.isdisjoint(_NO_GRAD)),
    )


def _builds_module(function: FunctionType) -> bool:
    """Return whether a function names a type of modules that initializes its parameters at random."""
    names = function.__code__.co_names
    if function.__code__.co_filename.startswith(_TORCH):
        return False
    values = [function.__globals__.get(name) for name in names]
    values += [vars(nn).get(name) for name in names if "nn" in names]
    return any(map(builds_drawing_module, values))


def _reachable(owner: type[nn.Module], forward: Any) -> Iterator[FunctionType]:
    """Yield the functions that a forward can reach, breadth first."""
    pending: list[Any] = [forward]
    seen: set[int] = set()
    while pending and len(seen) < _MAX_FUNCTIONS:
        value = pending.pop(0)
        if isinstance(value, partial):
            pending.append(getattr(value, "__wrapped__", None))
        function = plain_function(value)
        if function is None or id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        pending.append(getattr(function, "__wrapped__", None))
        pending.append(getattr(getattr(function, "mock", None), "side_effect", None))
        cells = (cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY)
        pending.extend(value for value in cells if type(value) in (FunctionType, MethodType))
        # A name that the code mentions may be a method of the type or a plain function of the same Python module.
        names = _names(function.__code__)
        for name in sorted(names - _NOT_FORWARD):
            methods = definitions_in(owner.__mro__, name)
            pending.extend(methods if "super" in names else methods[:1])
            helper = function.__globals__.get(name)
            if _as_function(helper) and not python_module(helper).startswith("torch."):
                pending.append(helper)


def plain_function(value: Any) -> FunctionType | None:
    """Return the function inside a partial, a method, a property or a static method."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return _as_function(value)


def _as_function(value: Any) -> FunctionType | None:
    return value if type(value) is FunctionType else None  # isinstance() is true for a mock with a spec


def definitions_in(bases: Iterable[type], name: str) -> list[Any]:
    """Return the definitions of a name in some bases of a type, unbound and without calling a descriptor."""
    return [vars(base)[name] for base in bases if name in vars(base) and base not in (nn.Module, object)]


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """Return the globals and attributes that a function names, also in inner functions and `getattr(x, "training")`."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif constant == "training" and "getattr" in names:
            names.add(constant)
    return frozenset(names)
