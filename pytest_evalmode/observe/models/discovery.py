"""The models inside a fixture value, and the attribute that holds an unregistered module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import cast

from torch import Tensor, nn

from pytest_evalmode.observe import modules

_MAX_VALUES = 2000
_MAX_DEPTH = 4


def attribute_of(owner: nn.Module, module: nn.Module) -> str | None:
    """Return the attribute of `owner` that holds an unregistered module, `blocks[0]` for example, or None."""
    tables = ("_modules", "_parameters", "_buffers")
    attributes = ((name, value) for name, value in vars(owner).items() if name not in tables)
    return next(
        (path for name, value in attributes for path, model in find_models(value, name) if model is module), None
    )


def find_models(value: object, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the models inside a fixture's value, with their paths.

    Looks at the value itself and into dicts, lists, tuples, dataclasses and plain objects.  Runs none of their code:
    attributes are read from the instance's `__dict__` and slots.  Every path begins with `name`.
    """
    seen: set[int] = set()
    queue: list[tuple[str, object, int]] = [(name, value, 0)]
    while queue and len(seen) < _MAX_VALUES:
        path, item, depth = queue.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if issubclass(type(item), nn.Module):  # isinstance() would ask a proxy for its object
            if modules.is_initialized(item):
                yield path, item
        elif depth < _MAX_DEPTH:
            queue.extend((path + step, inner, depth + 1) for step, inner in _contents(item))


def _contents(value: object) -> Iterator[tuple[str, object]]:
    if issubclass(type(value), dict):
        pairs = islice(dict.items(cast(dict[object, object], value)), _MAX_VALUES)
        yield from ((f"[{_key(key)}]", item) for key, item in pairs)
    elif issubclass(type(value), list | tuple):
        names = getattr(type(value), "_fields", None)
        items = islice(cast(Sequence[object], value), _MAX_VALUES)
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
    # Objects of pytest refer to the whole session, with every other fixture.
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
        attributes = dict(object.__getattribute__(value, "__dict__"))
    except Exception:
        attributes = {}
    slots = ((n, slot) for kind in type(value).__mro__ for n, slot in vars(kind).items())
    for name, slot in slots:
        if isinstance(slot, MemberDescriptorType):
            try:
                attributes.setdefault(name, slot.__get__(value))
            except AttributeError:  # the slot is not set
                continue
    return attributes
