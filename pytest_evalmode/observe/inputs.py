"""The tensors that a forward is given, before and after."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from pytest_evalmode.observe.fingerprint import Fingerprint, fingerprint, same

Inputs = list[tuple[str, Tensor, Fingerprint]]


def take(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """The tensors among the arguments, by name; in lists, tuples and dicts too, but not in other objects: caches.

    The caller is `undisturbed`.
    """
    found: Inputs = []
    seen: set[int] = set()  # a list may contain itself
    waiting: deque[tuple[str, object]] = deque((f"argument {i}", value) for i, value in enumerate(args))
    waiting.extend((f"argument {name!r}", value) for name, value in kwargs.items())
    while waiting:
        name, value = waiting.popleft()
        if isinstance(value, Tensor):
            found.append((name, value, fingerprint(value)))
        elif type(value) in (list, tuple, dict) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(cast(Sequence[object], value))
            waiting.extend((f"{name}[{key!r}]", item) for key, item in items)
    return found


def changes(before: Inputs) -> tuple[str, ...]:
    """The arguments that are not what they were; the caller is `undisturbed`."""
    return tuple(name for name, tensor, was in before if not same(was, fingerprint(tensor, was.kept), tensor))
