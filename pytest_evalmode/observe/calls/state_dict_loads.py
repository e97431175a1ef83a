"""Strict observer of `load_state_dict()`: which loads were incomplete."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import FrameType

from torch import nn

from pytest_evalmode.observe import patches
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.modules import type_name
from pytest_evalmode.observe.patches import Call, Observer
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Load, ModuleInfo

TensorSlot = tuple[weakref.ref[nn.Module], str]
"""The module that owns a tensor, and the tensor's name in it."""

# Modules whose functions only forward a load: decorators around an overridden `load_state_dict`.
_FORWARDING_MODULES = ("torch.utils._contextlib", "torch._dynamo.")


class StateDictLoads(Observer):
    """The loads of a window that had missing or unexpected keys."""

    patched = (patches.load_state_dict,)

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        super().__init__()
        self._loads: list[tuple[Load, dict[str, TensorSlot]]] = []
        self._filled: set[TensorSlot] = set()
        self._watch = watch
        self._user_lines = user_lines

    def pop_loads(self) -> tuple[Load, ...]:
        """Return the incomplete loads recorded so far and forget them.

        A missing key does not count if another load of the window filled it.
        """
        recorded, self._loads = self._loads, []
        incomplete = (
            replace(load, missing=tuple(key for key in load.missing if slots.get(key) not in self._filled))
            for load, slots in recorded
        )
        return tuple(load for load in incomplete if load.missing or load.unexpected)

    def add_load(self, call: Call) -> None:
        """Record a load, if it was incomplete."""
        module: nn.Module = call.args[0]
        given_keys: Iterable[str] = call.args[1] if len(call.args) > 1 else call.kwargs["state_dict"]
        # An override may return nothing.
        missing, unexpected = (call.result.missing_keys, call.result.unexpected_keys) if call.result else ([], [])
        matched = set(given_keys).difference(unexpected)
        slots, tied = _tensor_slots(module, matched)
        self._filled.update(slots[key] for key in matched if key in slots)
        missing = [key for key in missing if key not in tied]
        if not (missing or unexpected):
            return
        caller = self._user_lines.find_caller(call.frame)
        by_user = caller.frame is None or any(caller.frame is each for each in _requesting_frames(call.frame))
        if matched and not by_user:
            return  # a library's load
        name, path = self._watch.registry.locate(module)
        load = Load(
            ModuleInfo(name, path, type_name(module)),
            self._user_lines.site(*caller.line) if caller.line else None,
            tuple(missing),
            tuple(unexpected),
        )
        self._loads.append((load, slots))


def _tensor_slots(module: nn.Module, loaded: set[str]) -> tuple[dict[str, TensorSlot], set[str]]:
    """Return the slot of each tensor of a model by key, and the keys of tensors tied to one that was loaded."""
    slots: dict[str, TensorSlot] = {}
    tensor_ids: dict[str, int] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        owner = weakref.ref(part)
        hash(owner)  # caches the hash, so that the reference can still be compared when the module is gone
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            key = f"{path}.{name}" if path else name
            slots[key] = owner, name
            if tensor is not None:
                tensor_ids[key] = id(tensor)
    filled = {tensor_ids[key] for key in loaded if key in tensor_ids}
    return slots, {key for key, tensor in tensor_ids.items() if tensor in filled}


def _requesting_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of `load_state_dict()` overrides, up to and including the frame that called the outermost."""
    while frame is not None:
        yield frame
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name != "load_state_dict" and not name.startswith(_FORWARDING_MODULES):
            return
        frame = frame.f_back
