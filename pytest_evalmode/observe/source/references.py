"""References to an input tensor: whether anything but the call itself still uses it.

A forward may overwrite a temporary, as in `model(x.clone())`, because no code can read it afterwards. The search is
slow, so it is only run for inputs that have changed.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from gc import get_objects, get_referrers
from types import FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

from pytest_evalmode.observe.modules import python_module
from pytest_evalmode.observe.private_api import storage_use_count
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines

_MAX_STEPS = 12
_NAMED = (ModuleType, FunctionType, type)
_OWN_PACKAGE = __name__.partition(".")[0]
_ONE_TENSOR = 2
"""Use count of a storage with a single tensor: the tensor's use and that of the caller of `storage_use_count`."""


def has_shared_memory(tensor: Tensor) -> bool:
    """Return whether another tensor uses the same storage, for example the base of a view."""
    storage = _storage_of(tensor)
    return storage is not None and storage_use_count(storage) > _ONE_TENSOR


def tensors_sharing_memory(tensor: Tensor) -> list[Tensor]:
    """Return the other tensors that use the same storage and that code can reach."""
    storage = _storage_of(tensor)
    tensors = (each for each in get_objects() if issubclass(type(each), Tensor))
    return [each for each in tensors if each is not tensor and _storage_of(each) == storage]


def _storage_of(tensor: Tensor) -> int | None:
    """Return what identifies the storage of a tensor; None if it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def is_referenced(tensor: Tensor, frame: FrameType | None, user_lines: UserLines, ignored_ids: Container[int]) -> bool:
    """Return whether a tensor can be read after a call that was made in a frame.

    That is so if a variable of user code on the stack refers to it, or an object that the garbage collector tracks,
    other than those in `ignored_ids`.
    """
    variables = {id(value) for value in _variables(frame, user_lines)}
    pending: tuple[Any, ...] = (tensor,)  # since Python 3.13 get_referrers() also finds the tuple of its own arguments
    own: list[object] = [pending]  # containers of this search, which refer to what it finds
    seen = {id(tensor), id(pending), id(own)}
    for _ in range(_MAX_STEPS):
        if not variables.isdisjoint(map(id, pending)):
            return True
        referrers = get_referrers(*pending)
        pending = tuple(each for each in referrers if id(each) not in ignored_ids and _may_refer(each, seen))
        if not pending:
            return False
        if not all(map(_is_transparent, pending)):
            return True
        own += (referrers, pending)
        seen.update(map(id, (referrers, pending, *pending)))
    return True


def _may_refer(owner: object, seen: set[int]) -> bool:
    """Return whether a referrer is new, and neither a frame nor an object of this package."""
    if id(owner) in seen or isinstance(owner, FrameType):
        return False
    return not python_module(owner if isinstance(owner, FunctionType) else type(owner)).startswith(_OWN_PACKAGE)


def _is_transparent(owner: object) -> bool:
    """Return whether an object only matters if it is referenced itself: a tuple of arguments, a list, an iterator."""
    return python_module(type(owner)) in ("builtins", "functools") and not isinstance(owner, _NAMED)


def _variables(frame: FrameType | None, user_lines: UserLines) -> Iterator[object]:
    while frame is not None:
        if user_lines.is_user_code(frame.f_code):
            yield from callers.locals_of(frame).values()
        frame = frame.f_back
