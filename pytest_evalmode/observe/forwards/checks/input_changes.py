"""Did a forward change what it was given?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from sys import getrefcount
from typing import Any, cast

from torch import Tensor, nn

from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.source import references
from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, is_tensor, is_unchanged, undisturbed

Inputs = list[tuple[str, Tensor, Fingerprint, bool]]
"""The tensors by name, what they were, and whether another has the same memory."""


class InputChangeCheck(ForwardCheck):
    """Strict: compares the arguments that somebody else holds before and after."""

    def begin(self) -> None:
        self.before: Inputs = []
        if not devices.is_capturing():  # nothing is computed then
            with undisturbed():
                self.before = take(*self.forward.inputs)

    def end(self, output: object) -> Mapping[str, object]:
        with undisturbed():
            return {"inputs": changes(self.before, partial(self._is_held, output))}

    def _is_held(self, output: object, name: str, tensor: Tensor) -> bool:
        """Whether somebody else holds an argument: found out once for each line and argument."""
        outermost, held = self.forward, self.context.referenced
        key = outermost.innermost_line or outermost.call_line, name, getrefcount(tensor)
        if key not in held:
            apart = {id(output), *outermost.module_ids}
            held[key] = references.is_referenced(tensor, outermost.frame.f_back, self.context.sites, apart)
        return held[key]


def take(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """The tensors among the arguments, by name; in lists, tuples and dicts too, but not in other objects: caches.

    The caller is `undisturbed`.
    """
    given = _leaves(args, kwargs)
    return [
        (name, value, fingerprint_of(value), references.has_shared_memory(value))
        for name, value in given
        if is_tensor(value)
    ]


def contains_module(args: tuple[Any, ...], kwargs: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether a module is among the arguments, in lists, tuples and dicts too."""
    return any(value is module for _, value in _leaves(args, kwargs))


def changes(before: Inputs, is_held: Callable[[str, Tensor], bool]) -> tuple[str, ...]:
    """The arguments that are not what they were, and that somebody else holds; the caller is `undisturbed`."""
    return tuple(
        name
        for name, tensor, was, shared in before
        if not is_unchanged(was, fingerprint_of(tensor, was.has_values), tensor) and (shared or is_held(name, tensor))
    )


def _leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()  # a list may contain itself
    waiting: deque[tuple[str, object]] = deque((f"argument {i}", value) for i, value in enumerate(args))
    waiting.extend((f"argument {name!r}", value) for name, value in kwargs.items())
    while waiting:
        name, value = waiting.popleft()
        if type(value) not in (list, tuple, dict):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(cast(Sequence[object], value))
            waiting.extend((f"{name}[{key!r}]", item) for key, item in items)
