"""Check for plain attributes of a module that a forward changed.

Numbers, strings, bools, None and tensors are compared, also inside tuples, lists and dicts.  Other objects are not:
they serve as caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import is_
from typing import Any, NamedTuple

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.model_code.attribute_accesses import Use, attribute_use
from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint_of, is_tensor, is_unchanged, undisturbed
from pytest_evalmode.trace import AttributeChange, ModuleInfo

_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None))
_CONSTANT_TYPES = frozenset(_PLAIN_TYPES)
_CONTAINERS = (tuple, list, dict)
_ABSENT = object()
_MAX_LENGTH = 120
_MAX_ITEMS = 1000
_MAX_DEPTH = 8

Items = dict[str, object]
"""The plain values in an attribute by their path, `[0]['key']`, tensors as `Fingerprint`; the path of the attribute
itself is empty."""


class Attributes(NamedTuple):
    """The attributes of one module at one moment."""

    part: nn.Module
    values: dict[str, object]
    items: dict[str, Items]
    """Those that may change in place: tensors, and containers of more than constants."""


@dataclass(slots=True)
class _Memory:
    """What the check keeps from forward to forward of a model."""

    uses: dict[tuple[type, str], Use] = field(default_factory=dict)
    conditional: dict[tuple[int, str], tuple[weakref.ref[Any], AttributeChange]] = field(default_factory=dict)
    """Tensors that a forward stored and another may read without storing one, by `id` of the module and name."""


class AttributeChangeCheck(ForwardCheck):
    """Strict check that compares the attributes of a model before and after a forward."""

    def begin(self) -> None:
        self.before: list[Attributes] = []
        if self.forward.model.checks_unsaved_state and not devices.is_capturing():  # nothing is computed then
            with undisturbed():
                self.before = read_attributes(self.forward.parts)

    def end(self, output: object) -> Mapping[str, object]:
        compared = [old for old in self.before if id(old.part) not in self.forward.lazy]
        memory: _Memory = self.forward.tree.caches.setdefault(AttributeChangeCheck, _Memory())
        with undisturbed():
            stale = list(self._stale(memory)) if memory.conditional else []
            changes = list(find_changes(compared, self.forward.module_info, partial(self._counts, memory)))
            return {"attributes": (*stale, *changes)}

    def _counts(self, memory: _Memory, part: nn.Module, name: str, change: AttributeChange) -> bool:
        """Return whether another forward reads what this one has stored; the code is read once."""
        key = type(part), name
        if key not in memory.uses:
            others = (each for each in modules.all_modules(self.forward.owner) if each is not part)
            memory.uses[key] = attribute_use(part, name, others)
        value = vars(part).get(name)
        if memory.uses[key] == "conditional" and is_tensor(value):
            memory.conditional[id(part), name] = weakref.ref(value), change
            return False
        return memory.uses[key] != "fresh"

    def _stale(self, memory: _Memory) -> Iterator[AttributeChange]:
        """Yield the changes of earlier forwards that this one did not write again, so that it may have read them."""
        for part in self.forward.parts:
            for name, value in vars(part).items():
                stored = memory.conditional.get((id(part), name))
                if stored is None or not is_tensor(value):
                    continue
                # The parts of a model's own method may share what one of them stores.
                if stored[0]() is value and self.forward.owner is self.forward.root:
                    yield stored[1]
                memory.conditional[id(part), name] = weakref.ref(value), stored[1]


def read_attributes(parts: list[nn.Module]) -> list[Attributes]:
    """Return the attributes of modules as they are now; call it inside `undisturbed()`."""
    attributes: list[Attributes] = []
    # Modules have thousands of attributes of few types: search each combination of names and types once.
    mutable: dict[object, list[str]] = {}
    for part in parts:
        values = vars(part).copy()
        kind = type(part), *values, *map(type, values.values())
        names = mutable.get(kind)
        if names is None:
            own = ((name, value) for name, value in values.items() if name not in modules.TORCH_ATTRIBUTES)
            # The tuples of torch's own layers are sizes: they are many and never change in place.
            is_torch = modules.python_module(type(part)).startswith("torch.nn.modules.")
            containers = (list, dict) if is_torch else _CONTAINERS
            names = mutable[kind] = [name for name, value in own if is_tensor(value) or isinstance(value, containers)]
        items = {name: read_items(values[name]) for name in names if not _is_constant(values[name])} if names else {}
        attributes.append(Attributes(part, values, items))
    return attributes


def read_items(value: object) -> Items:
    """Return the plain values in an attribute, tensors as fingerprints."""
    found = islice(_walk("", value, 0), _MAX_ITEMS)
    return {path: fingerprint_of(item) if is_tensor(item) else item for path, item in found}


def find_changes(
    before: list[Attributes],
    module_info: Callable[[nn.Module], ModuleInfo],
    counts: Callable[[nn.Module, str, AttributeChange], bool] = lambda part, name, change: True,
) -> Iterator[AttributeChange]:
    """Yield the changes of attributes that count, in the order of the modules; call it inside `undisturbed()`."""
    for old in before:
        values = vars(old.part)
        if not old.items and list(values) == list(old.values) and all(map(is_, values.values(), old.values.values())):
            continue  # identical objects: true of most modules
        if modules.is_torch_wrapper(old.part) or modules.is_metric(old.part):
            continue
        computed = modules.computed_attributes(old.part)
        # Tensors first: they explain more than a counter.  New attributes are not compared: adding one is not a change.
        for name in sorted(old.values, key=lambda name: name not in old.items):
            if name in modules.TORCH_ATTRIBUTES or name in computed:
                continue
            difference = _find_difference(old, name, values.get(name, _ABSENT))
            if difference is not None:
                path, was, now = difference
                now = f"{now} with different values" if was == now else now
                change = AttributeChange(module_info(old.part), name + path, was, now)
                if counts(old.part, name, change):
                    yield change


def _find_difference(before: Attributes, name: str, now: object) -> tuple[str, str, str] | None:
    """Return the first difference in an attribute: its path there, and how it was and is; None if there is none."""
    old = before.values[name]
    known = before.items.get(name)
    if old is None or (old is now and known is None):
        return None  # what is set for the first time has not changed
    items = read_items(old) if known is None else known
    values = dict(islice(_walk("", now, 0), _MAX_ITEMS))
    if not (_is_comparable(old) and _is_comparable(now)):
        return None
    if isinstance(old, _CONTAINERS) != isinstance(now, _CONTAINERS):
        return "", _describe(old), _describe(now)
    for path, was in items.items():
        new = values.get(path, _ABSENT)
        if not _is_same(was, new):
            return path, _describe(was), _describe(new)
    added = [path for path in values if path not in items] if isinstance(old, list) and len(items) < _MAX_ITEMS else []
    return (added[0], _describe(_ABSENT), _describe(values[added[0]])) if added else None


def _is_comparable(value: object) -> bool:
    return value is _ABSENT or is_tensor(value) or isinstance(value, (*_PLAIN_TYPES, *_CONTAINERS))


def _is_same(old: object, new: object) -> bool:
    if isinstance(old, Fingerprint) and is_tensor(new):
        return is_unchanged(old, fingerprint_of(new, old.has_values), new)
    if old is None and new is not _ABSENT:
        return True
    if type(old) is not type(new):
        return False
    return old is new or old == new or (old != old and new != new)  # NaN is the same as NaN


def _walk(path: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    """Yield the plain values and tensors in a value with their paths."""
    if is_tensor(value) or isinstance(value, _PLAIN_TYPES):
        yield path, value
    elif isinstance(value, _CONTAINERS) and depth < _MAX_DEPTH:
        # A subclass may have methods of its own, which are not called.
        iterate: Any = list.__iter__ if isinstance(value, list) else tuple.__iter__
        items = dict.items(value) if isinstance(value, dict) else enumerate(iterate(value))
        for key, item in list(islice(items, _MAX_ITEMS)):
            if isinstance(key, _PLAIN_TYPES) or _is_constant(key):
                yield from _walk(f"{path}[{key!r}]", item, depth + 1)


def _is_constant(value: object) -> bool:
    """Return whether a value is a tuple of constants: it cannot change in place."""
    return isinstance(value, tuple) and _CONSTANT_TYPES.issuperset(map(type, value))


def _describe(value: object) -> str:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, Fingerprint) or is_tensor(value):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, _CONTAINERS):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
