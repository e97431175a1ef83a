"""The stack -> the model that runs a module: one whose method called it, past `__call__` or inside it."""

from __future__ import annotations

import sys
from bdb import Bdb
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType
from typing import TypeGuard

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.source.user_lines import UserLines

_INNER = ".<locals>"
# Below these there is no code of a test's: a stack need not be looked at to its end.
_TELLING = frozenset({"__init__", "pytest_pyfunc_call", "pytest_runtest_call"})


def find_calling_model(module: nn.Module, frame: FrameType, sites: UserLines) -> tuple[nn.Module, FrameType]:
    """The model that runs a module by a method of its own, `model.encode(x)` say, and the frame of that method.

    The outermost one: methods of other modules may stand in between.  Where nothing does, the module itself and the
    frame in which its forward begins; so too where what holds the module is a metric, which is there to change.
    """
    found, called = module, frame
    caller = frame.f_back
    while caller is not None:
        name = _method(caller.f_code)
        if _is_of_a_module(name, caller.f_globals.get("__name__", "")):
            # Else it is a comprehension, or another function inside the method.
            if caller.f_code.co_qualname == name and caller.f_code.co_argcount and not _is_debugged(caller):
                this = _self(caller)
                if _holds(this, found):
                    found, called = (module, frame) if modules.is_metric(this) else (this, caller)
        elif sites.is_user_code(caller.f_code):
            break
        caller = caller.f_back
    return found, called


def is_inside_init(frame: FrameType) -> bool:
    """Whether a module is being built, which may run others to learn a size, and may yet initialise or load them."""
    caller = frame.f_back
    while caller is not None:
        name = caller.f_code.co_name
        if name in _TELLING:
            if name != "__init__":
                return False
            is_method = _is_of_a_module(_method(caller.f_code), caller.f_globals.get("__name__", ""))
            if is_method and caller.f_code.co_argcount and not _is_debugged(caller) and _is_module(_self(caller)):
                return True
        caller = caller.f_back
    return False


def _holds(this: object, module: nn.Module) -> TypeGuard[nn.Module]:
    """Whether this is a module that holds another: not before `Module.__init__` has run."""
    return _is_module(this) and any(p is module for p in modules.all_modules(this))


def _is_module(this: object) -> TypeGuard[nn.Module]:
    return isinstance(this, nn.Module) and modules.is_initialized(this)


def enclosing_forward_frame(frame: FrameType) -> FrameType:
    """Where the module began in whose forward another has begun; both begin in frames of functions of the same name."""
    name, home = frame.f_code.co_name, frame.f_code.co_filename
    outer = frame.f_back
    while outer is not None and (outer.f_code.co_name != name or outer.f_code.co_filename != home):
        outer = outer.f_back
    assert outer is not None
    return outer


def module_of_frame(frame: FrameType) -> nn.Module:
    """The module whose forward begins in a frame."""
    module = _self(frame)
    assert isinstance(module, nn.Module)
    return module


def _is_debugged(frame: FrameType) -> bool:
    """Whether a debugger stands in a frame: before Python 3.13, to ask for its locals undoes what was set there."""
    return isinstance(getattr(frame.f_trace, "__self__", None), Bdb)


def _self(frame: FrameType) -> object:
    """The first argument of a method that runs.

    Before Python 3.13 a frame keeps what it is asked for in a dict, with all that it names, and what is dropped in it
    would live on.  So the dict is emptied, unless `locals()` has it too.
    """
    known = frame.f_locals
    this = known.get(frame.f_code.co_varnames[0])
    if sys.version_info < (3, 13) and sys.getrefcount(known) <= _UNSHARED:
        known.clear()
    return this


_UNSHARED = 3
"""The references to the dict of a frame that nobody else has: the frame's, the variable's and the argument's."""


def _method(code: CodeType) -> str:
    """The qualified name of the method that a piece of code is, or that it was defined in."""
    name = code.co_qualname
    while (scope := name.rpartition(".")[0]).endswith(_INNER):
        name = scope.removesuffix(_INNER)
    return name


@lru_cache(maxsize=4096)
def _is_of_a_module(name: str, home: str) -> bool:
    """Whether a name is that of a method of a module's class, or of one that modules inherit from.

    Asked once for each name: a mixin counts if a module inherits from it by the time that its method first runs.
    """
    kind = name.rpartition(".")[0]
    if not kind:
        return False
    if _INNER in kind:
        return any((k.__qualname__, k.__module__) == (kind, home) for k in _bases_of_modules())
    value: object = sys.modules.get(home)
    for step in kind.split("."):
        value = getattr(value, "__dict__", {}).get(step)
    return isinstance(value, type) and _has_module_below(value)


def _has_module_below(kind: type) -> bool:
    return issubclass(kind, nn.Module) or any(map(_has_module_below, type.__subclasses__(kind)))


def _bases_of_modules() -> Iterator[type]:
    waiting: list[type] = [nn.Module]
    while waiting:
        kind = waiting.pop()
        yield from kind.__mro__
        waiting.extend(type.__subclasses__(kind))
