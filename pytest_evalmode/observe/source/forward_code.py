"""What the code of a forward says: whether it depends on the mode, draws random numbers or turns autograd off.

Read from the functions that a forward can reach, never by running them: methods of the type and of its bases other than
`nn.Module`, and the plain functions that these name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from pytest_evalmode.observe.modules import python_module
from pytest_evalmode.observe.source.draw_calls import DrawCall, draw_calls_in, mentions_draw

_NO_GRAD = frozenset({"no_grad", "inference_mode", "set_grad_enabled"})
_CALLS = frozenset({"__call__", "_call_impl", "_wrapped_call_impl", "_wrapped_call"})
_NOT_FORWARD = frozenset({"__init__", "train", "eval", "training"})
_MOST_FUNCTIONS = 400


@dataclass(frozen=True, slots=True)
class Traits:
    """What the forward of a type does, as far as its code tells."""

    reads_training: bool
    """It reads `self.training`."""
    may_draw: bool
    """It names something that draws from a generator."""
    disables_grad: bool
    """It turns autograd off by itself."""


_traits: WeakKeyDictionary[type[nn.Module], Traits] = WeakKeyDictionary()
_read_from: WeakKeyDictionary[type[nn.Module], ref[FunctionType]] = WeakKeyDictionary()
"""The forwards that they were read from; a strong reference would keep the type alive."""


def module_traits(module: nn.Module) -> Traits:
    """The traits of a module's type; of the module itself where it carries a forward of its own."""
    return _read(type(module), *_forwards(module)) if "forward" in vars(module) else type_traits(type(module))


def type_traits(kind: type[nn.Module]) -> Traits:
    """The traits of a type, read once."""
    known = _traits.get(kind)
    if known is None:
        forward = inspect.getattr_static(kind, "forward")
        known = _traits[kind] = _read(kind, forward, *own_calls(kind))
        if _function(forward):
            _read_from[kind] = ref(forward)
    return known


def own_calls(kind: type[nn.Module]) -> list[FunctionType]:
    """What a type and its bases put in the place of `nn.Module.__call__`, and that does not come to it."""
    calls = [call for call in _definitions(kind, "__call__") if bypasses_module_call(call)]
    return [inspect.unwrap(call) for call in calls]


def bypasses_module_call(call: object) -> bool:
    """Whether this is a `__call__` that does not come to that of `nn.Module`, as far as its code tells."""
    function = inspect.unwrap(call) if callable(call) else None
    return isinstance(function, FunctionType) and _CALLS.isdisjoint(_names(function.__code__))


def forget_replaced_forwards(kinds: Iterable[type[nn.Module]]) -> None:
    """Let types be read anew whose forward has been replaced, as tests patch it and put it back."""
    for kind in kinds:
        known = _read_from.get(kind)
        forward = next((vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)), None)
        if kind in _traits and (None if known is None else known()) is not _function(forward):
            del _traits[kind]
            _read_from.pop(kind, None)


def find_draw_calls(module: nn.Module) -> list[DrawCall]:
    """The calls that may have drawn, the likeliest first: one that does not ask for the mode before one that does."""
    given = [*vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    given = list(filter(_function, given))
    starts = (*given, *_forwards(module))
    functions = list(chain.from_iterable(_reachable(type(module), start) for start in starts))
    found = dict.fromkeys(draw for function in functions for draw in draw_calls_in(function))
    if not any("training" in _names(function.__code__) for function in functions):
        # A helper may ask for the mode: nobody tells it.
        found = {replace(draw, gated=False): None for draw in found}
    return sorted(found, key=lambda draw: draw.gated)


def _forwards(module: nn.Module) -> list[Any]:
    """The forward as it lies there (that of a traced module is a descriptor, which is not to be asked).

    Where a module carries one of which nothing tells what it calls, a mock, the one of its type too.
    """
    kind = type(module)
    own, of_type = vars(module).get("forward"), [inspect.getattr_static(kind, "forward"), *own_calls(kind)]
    if own is None:
        return of_type
    function = _plain(own)
    return [own, *of_type] if function is None or hasattr(function, "mock") else [own]


def _read(owner: type[nn.Module], *forwards: Any) -> Traits:
    names: set[str] = set()
    may_draw = stops_grad = False
    for function in chain.from_iterable(_reachable(owner, forward) for forward in forwards):
        names |= _names(function.__code__)
        may_draw |= mentions_draw(function.__code__)
        # A context manager used as a decorator runs in a wrapper of torch's own.
        stops_grad |= function.__code__.co_filename.endswith("_contextlib.py")
    return Traits(
        reads_training="training" in names,
        may_draw=may_draw,
        # Torch's own layers do so only where they set up their weights.
        disables_grad=not python_module(owner).startswith("torch.nn.")
        and (stops_grad or not names.isdisjoint(_NO_GRAD)),
    )


def _reachable(owner: type[nn.Module], forward: Any) -> Iterator[FunctionType]:
    """The functions that a forward can come to, breadth first."""
    waiting: list[Any] = [forward]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_FUNCTIONS:
        value = waiting.pop(0)
        if isinstance(value, partial):
            waiting.append(getattr(value, "__wrapped__", None))
        function = _plain(value)
        if function is None or id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        waiting.append(getattr(function, "__wrapped__", None))
        waiting.append(getattr(getattr(function, "mock", None), "side_effect", None))
        waiting.extend(cell.cell_contents for cell in function.__closure__ or () if _filled(cell))
        names = _names(function.__code__)
        for name in sorted(names - _NOT_FORWARD):
            methods = _definitions(owner, name)
            waiting.extend(methods if "super" in names else methods[:1])
            helper = function.__globals__.get(name)
            if _function(helper) and not python_module(helper).startswith("torch."):
                waiting.append(helper)


def _plain(value: Any) -> FunctionType | None:
    """The function beneath a partial one, a method, a property or a static method."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return _function(value)


def _function(value: Any) -> FunctionType | None:
    return value if type(value) is FunctionType else None  # a mock with its spec passes for one


def _filled(cell: Any) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType | MethodType)
    except ValueError:
        return False


def _definitions(owner: type[nn.Module], name: str) -> list[Any]:
    """What a type and its bases call by this name, unbound and without calling any descriptor.

    A mixin may stand behind `nn.Module`.
    """
    bases = [base for base in owner.__mro__ if base is not nn.Module and base is not object]
    return [base.__dict__[name] for base in bases if name in base.__dict__]


def _names(code: CodeType) -> set[str]:
    """The globals and attributes that a function names, in its inner functions too; one attribute by a string."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif constant == "training" and "getattr" in names:
            names.add(constant)
    return names
