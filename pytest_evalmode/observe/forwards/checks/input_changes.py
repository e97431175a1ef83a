"""Check for arguments that a forward changed in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from sys import getrefcount
from typing import Any

from torch import Tensor, nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.source import references
from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, is_tensor, is_unchanged, undisturbed


class InputChangeCheck(ForwardCheck):
    """Strict check that compares the arguments of a forward before and after it.

    A changed argument counts only if something else still references it: a temporary, `model(x.clone())`, may change.
    If a method such as `model.encode(x)` runs the forward, the variables of that method do not count.
    """

    def begin(self) -> None:
        self.before: list[tuple[str, Tensor, Fingerprint, bool]] = []
        """Name, tensor, fingerprint before the forward, and whether another tensor shares its memory."""
        if not devices.is_capturing():  # nothing is computed then
            with undisturbed():
                self.before = [
                    (name, value, fingerprint_of(value), references.has_shared_memory(value))
                    for name, value in _leaves(*self.forward.inputs)
                    if is_tensor(value)
                ]

    def end(self, output: object) -> Mapping[str, object]:
        with undisturbed():
            changed = [
                name
                for name, tensor, was, is_shared in self.before
                if not is_unchanged(was, fingerprint_of(tensor, was.has_values), tensor)
                and self._is_referenced(output, name, tensor, is_shared)
            ]
        return {"inputs": tuple(changed)}

    def _is_referenced(self, output: object, name: str, tensor: Tensor, is_shared: bool) -> bool:
        """Return whether something else references an argument; searched once for each line and argument."""
        forward = self.forward
        if is_shared and forward.owner is forward.root:
            return True
        referenced: dict[object, bool] = forward.tree.caches.setdefault(InputChangeCheck, {})
        key = forward.innermost_line or forward.call_line, name, getrefcount(tensor), is_shared
        if key not in referenced:
            own = map(id, modules.all_modules(forward.owner))
            ignored_ids = {id(output), *forward.tree.module_ids, *forward.late_modules, *own}
            others = references.tensors_sharing_memory(tensor) if is_shared else []
            referenced[key] = any(
                references.is_referenced(each, forward.owner_frame.f_back, self.window.user_lines, ignored_ids)
                for each in (tensor, *(other for other in others if other is not output))
            )
        return referenced[key]


def contains_module(args: tuple[Any, ...], kwargs: Mapping[str, Any], module: nn.Module) -> bool:
    """Return whether a module is among the arguments, lists, tuples and dicts included."""
    return any(value is module for _, value in _leaves(args, kwargs))


def _leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what lists, tuples and dicts among the arguments hold; other objects serve as caches."""
    seen: set[int] = set()  # a list may contain itself
    found = [(f"argument {i}", value) for i, value in enumerate(args)]
    found += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in found:
        if type(value) not in (list, tuple, dict):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            found.extend((f"{name}[{key!r}]", item) for key, item in items)
