"""Check for plain attributes of a module that a forward changed.

Numbers, strings, bools, None and tensors are compared.  Lists, dicts and other objects are not: they serve as caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import is_
from typing import NamedTuple

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, is_tensor, is_unchanged, undisturbed
from pytest_evalmode.trace import AttributeChange, ModuleInfo

_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None))
_ABSENT = object()
_MAX_LENGTH = 120


class Attributes(NamedTuple):
    """The attributes of one module at one moment."""

    part: nn.Module
    values: dict[str, object]
    tensors: dict[str, Fingerprint]


class AttributeChangeCheck(ForwardCheck):
    """Strict check that compares the attributes of a model before and after a forward."""

    def begin(self) -> None:
        self.before: list[Attributes] = []
        if self.forward.model.checks_unsaved_state and not devices.is_capturing():  # nothing is computed then
            with undisturbed():
                self.before = read_attributes(self.forward.parts)

    def end(self, output: object) -> Mapping[str, object]:
        compared = [old for old in self.before if id(old.part) not in self.forward.lazy]
        with undisturbed():
            return {"attributes": tuple(find_changes(compared, self.forward.module_info))}


def read_attributes(parts: list[nn.Module]) -> list[Attributes]:
    """Return the attributes of modules as they are now; call it inside `undisturbed()`."""
    attributes: list[Attributes] = []
    # Modules have thousands of attributes of few types: check each type once.
    other_types: set[type] = set()
    for part in parts:
        values = vars(part).copy()
        tensors: dict[str, Fingerprint] = {}
        if not other_types.issuperset(map(type, values.values())):
            tensors = {name: fingerprint_of(value) for name, value in values.items() if is_tensor(value)}
            other_types.update(type(value) for value in values.values() if not is_tensor(value))
        attributes.append(Attributes(part, values, tensors))
    return attributes


def find_changes(before: list[Attributes], module_info: Callable[[nn.Module], ModuleInfo]) -> Iterator[AttributeChange]:
    """Yield the attributes that have changed, in the order of the modules; call it inside `undisturbed()`."""
    for old in before:
        values = vars(old.part)
        if not old.tensors and list(values) == list(old.values) and all(map(is_, values.values(), old.values.values())):
            continue  # identical objects: true of most modules
        if modules.is_torch_wrapper(old.part) or modules.is_metric(old.part):
            continue
        computed = modules.computed_attributes(old.part)
        # Tensors first: they explain more than a counter.  New attributes are not compared: adding one is not a change.
        for name in sorted(old.values, key=lambda name: name not in old.tensors):
            if name not in modules.TORCH_ATTRIBUTES and name not in computed and not _is_same(old, name, values):
                was, now = (_describe(name, attributes) for attributes in (old.values, values))
                now = f"{now} with different values" if was == now else now
                yield AttributeChange(module_info(old.part), name, was, now)


def _is_same(before: Attributes, name: str, now: Mapping[str, object]) -> bool:
    old, new = before.values.get(name, _ABSENT), now.get(name, _ABSENT)
    fingerprint = before.tensors.get(name)
    if fingerprint is not None and is_tensor(new):
        return is_unchanged(fingerprint, fingerprint_of(new, fingerprint.has_values), new)
    if not (_is_plain(old) and _is_plain(new)):
        return True
    if type(old) is not type(new):
        return False
    return old is new or old == new or (old != old and new != new)  # NaN is the same as NaN


def _is_plain(value: object) -> bool:
    return value is _ABSENT or isinstance(value, _PLAIN_TYPES) or is_tensor(value)


def _describe(name: str, values: Mapping[str, object]) -> str:
    value = values.get(name, _ABSENT)
    if value is _ABSENT:
        return "(absent)"
    if is_tensor(value):
        return f"tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
