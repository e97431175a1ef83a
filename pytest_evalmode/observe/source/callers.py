"""The model that a forward belongs to, read from the call stack.

`model.encode(x)` runs a submodule without a forward of the model. The model is then found by its method on the stack.
"""

from __future__ import annotations

import sys
from bdb import Bdb
from collections.abc import Iterator
from functools import lru_cache
from inspect import CO_OPTIMIZED, getattr_static
from types import CodeType, FrameType
from typing import TypeGuard

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.source.user_lines import UserLines

_OBSERVER = "pytest_evalmode.observe.forwards.observer"
_LOCALS = ".<locals>"
# The walk outwards ends at pytest's own functions: beyond them there is no code of the test.
_INIT_OR_PYTEST = frozenset({"__init__", "pytest_pyfunc_call", "pytest_runtest_call"})


def find_calling_model(module: nn.Module, frame: FrameType, user_lines: UserLines) -> tuple[nn.Module, FrameType]:
    """Return the model that runs a module in one of its methods, for example `model.encode(x)`, and the method's frame.

    This is the outermost such model; methods of other modules may be in between. It is the module itself, with the
    frame in which its forward begins, if no method of a model called it, or if that model is a metric: the state of a
    metric is meant to change.
    """
    model, model_frame = module, frame
    caller = frame.f_back
    while caller is not None:
        name = _method_name(caller.f_code)
        if _is_module_method(name, caller.f_globals.get("__name__", "")):
            # A comprehension or an inner function of the method has another name: its first argument is not `self`.
            instance = _first_argument(caller) if caller.f_code.co_qualname == name else None
            if _is_module(instance) and any(part is model for part in modules.all_modules(instance)):
                model, model_frame = (module, frame) if modules.is_metric(instance) else (instance, caller)
        elif user_lines.is_user_code(caller.f_code):
            break
        caller = caller.f_back
    return model, model_frame


def is_in_property(frame: FrameType, end: FrameType) -> bool:
    """Return whether a property was read or set on the call stack from `frame` outwards to `end`."""
    caller = frame
    while caller is not end and caller.f_back is not None:
        caller = caller.f_back
        if isinstance(getattr_static(type(_first_argument(caller)), caller.f_code.co_name, None), property):
            return True
    return False


def is_inside_init(frame: FrameType) -> bool:
    """Return whether the `__init__` of a module is on the stack: it may run other modules to infer a size."""
    caller = frame.f_back
    while caller is not None:
        name = caller.f_code.co_name
        if name in _INIT_OR_PYTEST:
            if name != "__init__":
                return False
            if is_in_module_method(caller) and _is_module(_first_argument(caller)):
                return True
        caller = caller.f_back
    return False


def is_in_module_method(frame: FrameType) -> bool:
    """Return whether a frame runs a method of a module class."""
    return _is_module_method(_method_name(frame.f_code), frame.f_globals.get("__name__", ""))


def is_inside_forward(frame: FrameType | None) -> bool:
    """Return whether a forward that is observed is on the stack."""
    while frame is not None and frame.f_globals.get("__name__") != _OBSERVER:
        frame = frame.f_back
    return frame is not None


def _is_module(instance: object) -> TypeGuard[nn.Module]:
    return isinstance(instance, nn.Module) and modules.is_initialized(instance)


def enclosing_forward_frame(frame: FrameType) -> FrameType:
    """Return the frame in which the forward around this one began; both are frames of the same patched function."""
    name, file = frame.f_code.co_name, frame.f_code.co_filename
    outer = frame.f_back
    while outer is not None and (outer.f_code.co_name != name or outer.f_code.co_filename != file):
        outer = outer.f_back
    assert outer is not None
    return outer


def module_of_frame(frame: FrameType) -> nn.Module:
    """Return the module that is the first argument of a function of torch, or of one that replaces it."""
    module = frame.f_locals[frame.f_code.co_varnames[0]]
    assert isinstance(module, nn.Module)
    return module


def locals_of(frame: FrameType) -> dict[str, object]:
    """Return a copy of the local variables of a frame, without those that pytest adds to an `assert`.

    Before Python 3.13, `f_locals` is a dict that the frame of a function keeps, so objects would outlive a `del` in the
    function.  The dict is therefore cleared, unless the code has called `locals()` and shares it.  If a debugger traces
    the frame, reading it would undo assignments that were made there, so nothing is returned.
    """
    if isinstance(getattr(frame.f_trace, "__self__", None), Bdb):
        return {}
    variables = frame.f_locals
    values = dict(variables)
    is_function = frame.f_code.co_flags & CO_OPTIMIZED
    if sys.version_info < (3, 13) and is_function and sys.getrefcount(variables) <= _UNSHARED:
        variables.clear()
    for name in frame.f_code.co_varnames:
        if name.startswith("@"):  # an intermediate value, `@py_assert1`: no code of the user can read it
            values.pop(name, None)
    return values


_UNSHARED = 3
"""References to the dict of a frame if nothing else has it: the frame's, the variable's and the argument's."""


def _first_argument(frame: FrameType) -> object:
    """Return the first argument of a running function; None if it has none or is debugged."""
    return locals_of(frame).get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None


def _method_name(code: CodeType) -> str:
    """Return the qualified name of a method, or of the method that an inner function was defined in."""
    name = code.co_qualname
    while (scope := name.rpartition(".")[0]).endswith(_LOCALS):
        name = scope.removesuffix(_LOCALS)
    return name


@lru_cache(maxsize=4096)
def _is_module_method(name: str, python_module: str) -> bool:
    """Return whether a qualified name is a method of a module class, or of a class that module classes inherit from.

    The answer is cached: a mixin counts if a module class inherits from it by the time that its method first runs.
    """
    class_name = name.rpartition(".")[0]
    if not class_name:
        return False
    if _LOCALS in class_name:
        return any((k.__qualname__, k.__module__) == (class_name, python_module) for k in _bases_of_modules())
    value: object = sys.modules.get(python_module)
    for step in class_name.split("."):
        value = getattr(value, "__dict__", {}).get(step)
    return isinstance(value, type) and _has_module_subclass(value)


def _has_module_subclass(cls: type) -> bool:
    return issubclass(cls, nn.Module) or any(map(_has_module_subclass, type.__subclasses__(cls)))


def _bases_of_modules() -> Iterator[type]:
    pending: list[type] = [nn.Module]
    while pending:
        cls = pending.pop()
        yield from cls.__mro__
        pending.extend(type.__subclasses__(cls))
