"""A tensor that was handed to a forward -> whether somebody else still holds it.

Nobody reads a temporary again: `model(x.clone())` may use up what it is given.  It is asked only of what has changed.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Container, Iterator
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor
from torch._C import _storage_Use_Count

from pytest_evalmode.observe.modules import python_module
from pytest_evalmode.observe.source.user_lines import UserLines

_MOST_STEPS = 12
_NAMED = (ModuleType, FunctionType, type)
_OURS = __name__.partition(".")[0]
_ALONE = 2
"""The uses of a storage that has one tensor: its own, and that of who asks."""


def has_shared_memory(tensor: Tensor) -> bool:
    """Whether another tensor has the same memory: of a view, what it is a view of."""
    try:
        return int(_storage_Use_Count(tensor.untyped_storage()._cdata)) > _ALONE
    except (RuntimeError, NotImplementedError):  # there is no memory
        return False


def is_referenced(tensor: Tensor, frame: FrameType | None, user_lines: UserLines, ignored_ids: Container[int]) -> bool:
    """Whether a tensor is held by more than the call that begins in a frame, and what is set `apart`, by `id`.

    Somebody holds it by a variable of the user's code on the stack, or by an object that the collector knows.
    """
    variables = {id(value) for value in _variables(frame, user_lines)}
    waiting: tuple[Any, ...] = (tensor,)  # since Python 3.13 the arguments of a call are found, too: this very tuple
    ours: list[object] = [waiting]  # what this search makes holds what it finds
    seen = {id(tensor), id(waiting), id(ours)}
    for _ in range(_MOST_STEPS):
        if not variables.isdisjoint(map(id, waiting)):
            return True
        found = gc.get_referrers(*waiting)
        waiting = tuple(each for each in found if id(each) not in ignored_ids and _may_hold(each, seen))
        if not waiting:
            return False
        for holder in waiting:
            if not _hands_on(holder):
                return True
        ours += (found, waiting)
        seen.update(map(id, (found, waiting, *waiting)))
    return True


def _may_hold(holder: object, seen: set[int]) -> bool:
    if id(holder) in seen or isinstance(holder, FrameType):
        return False
    return not python_module(holder if isinstance(holder, FunctionType) else type(holder)).startswith(_OURS)


def _hands_on(holder: object) -> bool:
    """Whether this holds something for as long as somebody holds it: arguments, a list, an iterator."""
    return python_module(type(holder)) in ("builtins", "functools") and not isinstance(holder, _NAMED)


def _variables(frame: FrameType | None, sites: UserLines) -> Iterator[object]:
    while frame is not None:
        if sites.is_user_code(frame.f_code) and frame.f_trace is None:  # one that is debugged is not to be asked
            yield from _locals(frame, frame.f_code)
        frame = frame.f_back


def _locals(frame: FrameType, code: CodeType) -> list[object]:
    """The values of a frame's variables; before Python 3.13 it would keep the dict of them, and all that is in it."""
    known = frame.f_locals
    values = list(known.values())
    if sys.version_info < (3, 13) and code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(known) <= _UNSHARED:
        known.clear()
    return values


_UNSHARED = 3
"""The references to the dict of a frame that nobody else has: the frame's, the variable's and the argument's."""
