"""Every `load_state_dict()`, which writes; under the strict rules, those that left something over -> Load.

`nn.Module.load_state_dict` is wrapped while a window is open: it has hooks, but no global one.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

from torch import nn

from pytest_evalmode.observe.calls.model_conversions import ModelConversions
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.modules import type_name
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Load, ModuleInfo

Place = tuple[weakref.ref[nn.Module], str]
"""Where a tensor of a model stands: the module that holds it, and its name there."""

# Frames that only hand a load on: overrides, and what decorates them.
_HANDS_ON = ("torch.utils._contextlib", "torch._dynamo.")


class StateDictLoads:
    """Observes the loads of a window."""

    def __init__(self, watch: Watch, sites: UserLines, writers: ModelConversions, *, strict: bool) -> None:
        self.failures = ObserverErrors()
        self._writers = writers
        self._strict = strict
        self._loads: list[tuple[Load, dict[str, Place]]] = []
        self._filled: set[Place] = set()
        self._watch = watch
        self._sites = sites

    def pop_loads(self) -> tuple[Load, ...]:
        taken, self._loads = self._loads, []
        left = (
            replace(load, missing=tuple(key for key in load.missing if places.get(key) not in self._filled))
            for load, places in taken
        )
        return tuple(load for load in left if load.missing or load.unexpected)

    def add(self, module: nn.Module, given: Iterable[str], result: Any) -> None:
        """A load of the `given` keys has ended in the calling frame."""
        self._writers.note(module, "load_state_dict", sys._getframe(2))
        if not self._strict:
            return
        try:
            missing, unexpected = (result.missing_keys, result.unexpected_keys) if result is not None else ([], [])
            matched = set(given).difference(unexpected)
            places, tied = _places(module, matched)
            self._filled.update(places[key] for key in matched if key in places)
            missing = [key for key in missing if key not in tied]
            if not (missing or unexpected):
                return
            frame = sys._getframe(2)
            asked = self._sites.find_caller(frame)
            caller = asked.frame
            at = asked.test_frame or caller
            home = self._watch.find_model(module)
            name, path = (home[0].name, home[1]) if home else (self._watch.name_of(module), "")
            load = Load(
                ModuleInfo(name, path, type_name(module)),
                self._sites.site(at.f_code, at.f_lineno) if at else None,
                tuple(missing),
                tuple(unexpected),
                by_user=caller is None or any(caller is asker for asker in _askers(frame)),
                matched=len(matched),
            )
            self._loads.append((load, places))
        except Exception as error:
            self.failures.append(error)


def _places(module: nn.Module, loaded: set[str]) -> tuple[dict[str, Place], set[str]]:
    """Where the tensors of a model stand, by key; and the keys of those that are tied to one that was loaded."""
    places: dict[str, Place] = {}
    tensors: dict[str, int] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        holder = weakref.ref(part)
        hash(holder)  # it is kept, and can be told from others when the module has died
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            key = f"{path}.{name}" if path else name
            places[key] = holder, name
            if tensor is not None:
                tensors[key] = id(tensor)
    filled = {tensors[key] for key in loaded if key in tensors}
    return places, {key for key, tensor in tensors.items() if tensor in filled}


def _askers(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame that asked for a load, after the overrides that handed it on."""
    while frame is not None:
        yield frame
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name != "load_state_dict" and not name.startswith(_HANDS_ON):
            return
        frame = frame.f_back


load_state_dict_patch: Patch[StateDictLoads] = Patch("load_state_dict")


@load_state_dict_patch.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = load_state_dict_patch.original(self, *args, **kwargs)
    given = args[0] if args else kwargs.get("state_dict", ())
    for observer in load_state_dict_patch.observers:
        observer.add(self, given, result)
    return result
