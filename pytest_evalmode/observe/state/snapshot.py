"""Snapshots of a model's parameters and buffers, and the changes between two of them."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.modules import ModuleTables, NamedModules, packed_weights
from pytest_evalmode.observe.state import devices, read_plan, write_tracking
from pytest_evalmode.observe.state.digests import compute_digests, find_large, read_device_tensors
from pytest_evalmode.observe.state.fingerprint import (
    Fingerprint,
    differences,
    fingerprint_of,
    is_unchanged,
    stored_values,
    undisturbed,
)
from pytest_evalmode.observe.state.read_plan import ReadPlan
from pytest_evalmode.trace import Site, TensorChange

_VALUE_BUDGET = 1 << 20
_VALUE_BUDGET_SHARE = 50
"""The values of small tensors are stored up to 1 MiB, or a fiftieth of the large tensors' bytes if that is more."""

NamedTensor = tuple[str, Tensor]
"""A tensor with its qualified name."""

_DTYPE = attrgetter("dtype")
_INITIALIZED = attrgetter("initialized")


@dataclass(frozen=True)
class Snapshot:
    """Fingerprints of a model's parameters and buffers at one moment, by qualified name."""

    fingerprints: dict[str, Fingerprint]
    non_persistent: frozenset[str]
    """Names of the buffers that `state_dict()` does not save."""

    @cached_property
    def saved(self) -> dict[str, Fingerprint]:
        """The fingerprints, without those of non-persistent buffers."""
        return {name: value for name, value in self.fingerprints.items() if name not in self.non_persistent}

    @cached_property
    def bytes(self) -> int:
        """The size of a state dict.  Tied tensors, which have the same fingerprint object, count once."""
        return sum(fingerprint.size for fingerprint in {id(value): value for value in self.saved.values()}.values())

    @cached_property
    def dtypes(self) -> frozenset[str]:
        return frozenset(str(dtype).removeprefix("torch.") for dtype in set(map(_DTYPE, self.fingerprints.values())))

    @cached_property
    def has_uninitialized(self) -> bool:
        """Whether a lazy parameter or buffer has no shape yet."""
        return not all(map(_INITIALIZED, self.fingerprints.values()))

    def of_submodule(self, path: str) -> Snapshot:
        """Return the snapshot of a submodule; an empty path is that of the model itself."""
        start = f"{path}." if path else ""
        names = {name: name.removeprefix(start) for name in self.fingerprints if name.startswith(start)}
        return Snapshot(
            {inner: self.fingerprints[name] for name, inner in names.items()},
            frozenset(names[name] for name in self.non_persistent & names.keys()),
        )


_last_reads: dict[tuple[int, bool], tuple[ReadPlan, Snapshot, weakref.ref[Any]]] = {}
"""By the id of a model and whether non-persistent buffers were read: the last snapshot, and the plan to check it."""


def take_snapshot(
    root: nn.Module | ModuleTables,
    previous: Snapshot | None = None,
    *,
    skip: Collection[int] = (),
    include_non_persistent: bool = False,
) -> Snapshot:
    """Read the parameters and buffers of a model.

    Args:
        root: the model, or its tables once it has died.
        previous: an earlier snapshot to compare with; the values of the same small tensors are stored again.
        skip: ids of submodules to leave out.
        include_non_persistent: whether to read the buffers that `state_dict()` does not save, too.

    Returns:
        The snapshot; the object that the last call returned, if nothing changed since.
    """
    with undisturbed():
        uses_device = devices.accelerator_in_use() is not None
        device_data: Mapping[int, bytes] | None = None
        key = id(root), include_non_persistent
        plan, last, _ = _last_reads.get(key, (None, None, None))
        known = plan.find_tensors(skip) if plan is not None else None
        if plan is not None and last is not None and known is not None:
            device_data = read_device_tensors(known) if uses_device else {}
            if previous in (None, last) and plan.matches(known, device_data):
                return last
        parts = modules.walk(root, skip)
        saved, not_saved = named_tensors(parts)
        not_saved = not_saved if include_non_persistent else []
        tensors = [tensor for _, tensor in (*saved, *not_saved)]
        if device_data is None:
            device_data = read_device_tensors(tensors) if uses_device else {}
        is_alive = not isinstance(root, ModuleTables)  # a dead model is read only once
        plan = None
        if is_alive and (uses_device or write_tracking.tracker() is not None):
            # Made before the read, so that a write in between leads to another read next time.
            plan = read_plan.make_plan([part for _, part in parts], tensors, skip, device_data)
        snapshot = _read_snapshot(saved, not_saved, previous, device_data, tracked=is_alive)
        if plan is not None:
            _last_reads[key] = plan, snapshot, weakref.ref(root, lambda _: _last_reads.pop(key, None))
        return snapshot


def _read_snapshot(
    saved: list[NamedTensor],
    not_saved: list[NamedTensor],
    previous: Snapshot | None,
    device_data: Mapping[int, bytes],
    *,
    tracked: bool = True,
) -> Snapshot:
    """Read every tensor.  `device_data` has the tensors on devices."""
    known = previous.fingerprints if previous is not None else {}
    tensors = [*saved, *not_saved]
    large = find_large(tensor for _, tensor in tensors)
    budget = max(_VALUE_BUDGET, sum(tensor.nbytes for tensor in large.values()) // _VALUE_BUDGET_SHARE)
    digests = {**device_data, **compute_digests(large, tracked=tracked)}
    read: dict[int, Fingerprint] = {}  # a tied tensor is read once
    for name, tensor in tensors:
        key = id(tensor)
        if key not in read:
            old = known.get(name)
            store_values = key not in large and (budget > 0 if old is None else old.has_values)
            fingerprint = read[key] = fingerprint_of(tensor, store_values, digests.get(key))
            if fingerprint.has_values:
                budget -= fingerprint.size
    fingerprints = {name: read[id(tensor)] for name, tensor in tensors}
    return Snapshot(fingerprints, non_persistent=frozenset(name for name, _ in not_saved))


def find_changes(
    model: str, before: Snapshot, now: Snapshot, parts: NamedModules, last_forward: Site | None
) -> list[TensorChange]:
    """Return the changes between two snapshots of a model, first those that can show how much a tensor changed.

    A tensor whose layout in memory changed is read again, from `parts`.
    """
    if before.fingerprints == now.fingerprints and not before.has_uninitialized:
        return []
    changes: list[TensorChange] = []
    with undisturbed():
        saved, not_saved = named_tensors(parts)
        tensors = dict([*saved, *not_saved])
        for path, old in before.fingerprints.items():
            new = now.fingerprints.get(path)
            if new is None:
                changes.append(TensorChange(model, path, "removed"))
            elif old.initialized and not is_unchanged(old, new, tensors[path]):
                changes.append(_describe_change(model, path, old, new))
    # A non-persistent buffer that appears was made when it was first needed: that is not a change.
    added = now.fingerprints.keys() - before.fingerprints.keys() - now.non_persistent
    changes.extend(TensorChange(model, path, "added") for path in now.fingerprints if path in added)
    unsaved = before.non_persistent | now.non_persistent
    buffers = {f"{path}.{name}" if path else name for path, part in parts for name, _ in part._buffers.items()}
    changes = [
        replace(change, last_forward=last_forward, persistent=change.path not in unsaved, buffer=change.path in buffers)
        for change in changes
    ]
    return sorted(changes, key=lambda change: change.max_abs is None)


def named_tensors(parts: NamedModules) -> tuple[list[NamedTensor], list[NamedTensor]]:
    """Return the tensors that `state_dict()` saves, and the buffers that it does not, with their qualified names.

    Call it inside `undisturbed()`, since an operator unpacks packed weights.  Reads the tables of the modules: reading
    the attribute of a parametrized weight can change its buffers.
    """
    saved: list[NamedTensor] = []
    not_saved: list[NamedTensor] = []
    for path, part in parts:
        prefix = f"{path}." if path else ""
        for name, tensor in part._parameters.items():
            if tensor is not None:
                saved.append((prefix + name, tensor))
        if part._buffers:
            non_persistent = getattr(part, "_non_persistent_buffers_set", ())
            for name, tensor in part._buffers.items():
                if tensor is not None:
                    (not_saved if name in non_persistent else saved).append((prefix + name, tensor))
        for name, weight in packed_weights(part).items():
            saved.extend((f"{prefix}{name}.{i}", tensor) for i, tensor in enumerate(_unpack(weight)))
    return saved, not_saved


def find_tensor(root: nn.Module, path: str) -> Tensor | None:
    """Return a parameter or buffer by its qualified name; None if it was removed or is inside a wrapper."""
    part: Any = root
    *steps, name = path.split(".")
    try:
        for step in steps:
            part = part._modules[step]
        tensor: Tensor | None = (part._parameters if name in part._parameters else part._buffers)[name]
    except (AttributeError, KeyError):
        return None
    return tensor


def _unpack(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a packed weight: the weight, its scales and its bias, of each layer for an LSTM."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.ScriptObject):
        yield from _unpack(value.__getstate__())
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_unpack, value))


def _describe_change(model: str, path: str, before: Fingerprint, now: Fingerprint) -> TensorChange:
    if before.shape != now.shape:
        change = f"{tuple(before.shape)} -> {tuple(now.shape)}"
        return TensorChange(model, path, "shape", before_and_after=change)
    if before.dtype != now.dtype:
        return TensorChange(model, path, "dtype", before_and_after=f"{before.dtype} -> {now.dtype}")
    if before.device != now.device:
        return TensorChange(model, path, "device", before_and_after=f"{before.device} -> {now.device}")
    old_values, new_values = stored_values(before), stored_values(now)
    if old_values is None or new_values is None or before.strides != now.strides:
        return TensorChange(model, path, "values")
    return TensorChange(model, path, "values", *_extent(old_values, new_values))


def _extent(old: Tensor, new: Tensor) -> tuple[int, int, float | None]:
    """Return the number of changed elements, of all elements, and the largest absolute difference (None if NaN)."""
    wide = torch.complex128 if old.is_complex() else torch.float64
    try:
        max_abs = float((new.to(wide) - old.to(wide)).abs().max())
    except (RuntimeError, NotImplementedError):
        max_abs = float("nan")
    return int(differences(old, new).sum()), old.numel(), max_abs if max_abs == max_abs else None
