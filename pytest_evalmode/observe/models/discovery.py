"""A fixture's value -> the models inside it; a module -> where its owner keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import cast

from torch import Tensor, nn

from pytest_evalmode.observe import modules

_MOST_VALUES = 2000
_DEEPEST = 4


def attribute_of(owner: nn.Module, module: nn.Module) -> str | None:
    """Where an owner keeps a module that it did not register: `blocks[0]`, or None."""
    kept = ((name, value) for name, value in vars(owner).items() if name not in ("_modules", "_parameters", "_buffers"))
    return next((path for name, value in kept for path, model in find_models(value, name) if model is module), None)


def find_models(value: object, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The models inside a fixture's value: itself, or in a dict, list, dataclass or plain object.

    Runs no code of the value's: an object's attributes are read where they lie.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object, int]] = [(name, value, 0)]
    while waiting and len(seen) < _MOST_VALUES:
        path, item, depth = waiting.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if issubclass(type(item), nn.Module):  # isinstance() would ask a proxy for its object
            if modules.is_initialized(item):
                yield path, item
        elif depth < _DEEPEST:
            waiting.extend((path + step, inner, depth + 1) for step, inner in _inside(item))


def _inside(value: object) -> Iterator[tuple[str, object]]:
    if issubclass(type(value), dict):
        items_ = islice(dict.items(cast(dict[object, object], value)), _MOST_VALUES)
        yield from ((f"[{_key(key)}]", item) for key, item in items_)
    elif issubclass(type(value), list | tuple):
        names = getattr(type(value), "_fields", None)
        items = islice(cast(Sequence[object], value), _MOST_VALUES)
        yield from ((f".{names[i]}" if names else f"[{i}]", item) for i, item in enumerate(items))
    elif _is_plain_object(value):
        yield from ((f".{key}", item) for key, item in _attributes(value).items())


def _key(key: object) -> str:
    try:
        return repr(key)
    except Exception:
        return f"<{type(key).__name__}>"


def _is_plain_object(value: object) -> bool:
    if issubclass(type(value), Tensor | type | ModuleType | FunctionType | MethodType | str | bytes):
        return False
    # pytest's own fixtures lead to everything there is.
    return modules.python_module(type(value)).partition(".")[0] not in (
        "builtins",
        "pytest",
        "_pytest",
        "pluggy",
        "torch",
        "numpy",
    )


def _attributes(value: object) -> Mapping[str, object]:
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except Exception:
        found = {}
    slots = ((n, slot) for kind in type(value).__mro__ for n, slot in vars(kind).items())
    for name, slot in slots:
        if isinstance(slot, MemberDescriptorType):
            try:
                found.setdefault(name, slot.__get__(value))
            except AttributeError:  # nothing is there yet
                continue
    return found
