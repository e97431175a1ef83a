"""Did a plain attribute of a module change?

Numbers, strings, bools, None and tensors.  Lists, dicts and other objects are not compared: caches live there.
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

# What torch keeps for itself in every module; `training` has rules of its own.
_OWN = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_ABSENT = object()
_LONGEST = 120


class Attributes(NamedTuple):
    """The attributes of one module at one moment."""

    part: nn.Module
    values: dict[str, object]
    tensors: dict[str, Fingerprint]


class AttributeChangeCheck(ForwardCheck):
    """Strict: compares the attributes of a model before and after."""

    def begin(self) -> None:
        self.before: list[Attributes] = []
        if self.forward.model.checks_unsaved_state and not devices.is_capturing():  # nothing is computed then
            with undisturbed():
                self.before = read_attributes(self.forward.parts)

    def end(self, output: object) -> Mapping[str, object]:
        settled = [old for old in self.before if id(old.part) not in self.forward.lazy]
        with undisturbed():
            return {"attributes": tuple(find_changes(settled, self.forward.part))}


def read_attributes(parts: list[nn.Module]) -> list[Attributes]:
    """The attributes of modules as they are now; the caller is `undisturbed`."""
    found: list[Attributes] = []
    others: set[type] = set()  # types that are no tensors: there are few, and thousands of attributes
    for part in parts:
        values = vars(part).copy()
        tensors: dict[str, Fingerprint] = {}
        if not others.issuperset(map(type, values.values())):
            tensors = {name: fingerprint_of(value) for name, value in values.items() if is_tensor(value)}
            others.update(type(value) for value in values.values() if not is_tensor(value))
        found.append(Attributes(part, values, tensors))
    return found


def find_changes(before: list[Attributes], name: Callable[[nn.Module], ModuleInfo]) -> Iterator[AttributeChange]:
    """What is not as it was, in the order of the modules; the caller is `undisturbed`."""
    for old in before:
        values = vars(old.part)
        if not old.tensors and list(values) == list(old.values) and all(map(is_, values.values(), old.values.values())):
            continue  # the very same objects: no more need be asked of most modules
        if modules.is_torch_wrapper(old.part) or modules.is_metric(old.part):
            continue
        computed = modules.computed_attributes(old.part)
        # A tensor says more than a counter beside it.  What appears, set once when it is first needed, has not changed.
        for attribute in sorted(old.values, key=lambda name: name not in old.tensors):
            if attribute not in _OWN and attribute not in computed and not _same(old, attribute, values):
                was, now = (_told(attribute, each) for each in (old.values, values))
                yield AttributeChange(name(old.part), attribute, was, f"{now}, of other values" if was == now else now)


def _same(before: Attributes, attribute: str, now: Mapping[str, object]) -> bool:
    old, new = before.values.get(attribute, _ABSENT), now.get(attribute, _ABSENT)
    print_ = before.tensors.get(attribute)
    if print_ is not None and is_tensor(new):
        return is_unchanged(print_, fingerprint_of(new, print_.has_values), new)
    if not (_is_plain(old) and _is_plain(new)):
        return True
    if type(old) is not type(new):
        return False
    return old is new or old == new or (old != old and new != new)


def _is_plain(value: object) -> bool:
    return value is _ABSENT or isinstance(value, _PLAIN) or is_tensor(value)


def _told(attribute: str, values: Mapping[str, object]) -> str:
    value = values.get(attribute, _ABSENT)
    if value is _ABSENT:
        return "(absent)"
    if is_tensor(value):
        return f"tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
