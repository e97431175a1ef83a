"""Parameters and persistent buffers, before and after -> TensorChange."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.modules import ModuleTables, NamedModules, packed_weights
from pytest_evalmode.observe.state import devices, digest_cache, read_plan
from pytest_evalmode.observe.state.digests import compute_digests, find_large, read_device_tensors, wait_for_devices
from pytest_evalmode.observe.state.fingerprint import (
    Fingerprint,
    fingerprint_of,
    is_unchanged,
    stored_values,
    undisturbed,
)
from pytest_evalmode.observe.state.read_plan import ReadPlan
from pytest_evalmode.trace import Site, TensorChange

_KEPT_AT_LEAST = 1 << 20
_KEPT_SHARE = 50

_SIZE = attrgetter("size")
_INITIALISED = attrgetter("initialized")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a model held at one moment, by qualified name."""

    fingerprints: dict[str, Fingerprint]
    non_persistent: frozenset[str]
    """The names of the non-persistent buffers, which `state_dict()` does not save."""
    bytes: int
    has_uninitialized: bool
    """Whether a lazy parameter has yet to be given its shape."""

    def of_submodule(self, path: str) -> Snapshot:
        """What a part of the model held, by its path there."""
        start = f"{path}."
        prints = {
            name.removeprefix(start): print_ for name, print_ in self.fingerprints.items() if name.startswith(start)
        }
        passing = frozenset(name.removeprefix(start) for name in self.non_persistent if name.startswith(start))
        size = sum(print_.size for name, print_ in prints.items() if name not in passing)
        return Snapshot(prints, passing, size, not all(map(_INITIALISED, prints.values())))


@dataclass(frozen=True, slots=True)
class _Last:
    """What was last read of a tree."""

    root: weakref.ref[Any]
    plan: ReadPlan
    snapshot: Snapshot


_last: dict[tuple[int, bool], _Last] = {}


def take_snapshot(
    root: nn.Module | ModuleTables,
    previous: Snapshot | None = None,
    *,
    skip: Collection[int] = (),
    include_non_persistent: bool = False,
    untracked: bool = False,
) -> Snapshot:
    """Read the parameters and buffers of a model but for the parts to `skip`; those that are `passing`, on request.

    Small tensors are kept by value while they are a small part of all; what `like` kept so is kept so again.  Of what
    is read `once` alone, as what is left of a model that has died is, the kernel need not tell who writes to it: that
    takes longer than to read it.
    """
    with undisturbed():
        elsewhere = devices.accelerator_in_use() is not None
        last = _last_of(root, include_non_persistent)
        untracked = last is None and (untracked or isinstance(root, ModuleTables))
        tree = last.plan.find_tree(skip) if last is not None else None
        parts: NamedModules = []
        if tree is None:
            last, parts = None, modules.walk(root, skip)
            if not untracked and (elsewhere or digest_cache.get_cache() is not None):
                tree = read_plan.read_tree(
                    [part for _, part in parts], skip, include_non_persistent=include_non_persistent
                )
        there = _brought(tree.tensors) if tree is not None and elsewhere else None
        if tree is None:
            return _read_snapshot(parts, previous, include_non_persistent, once=untracked)
        if last is not None and previous in (None, last.snapshot) and tree.matches(last.plan, there or {}):
            digest_cache.byte_counts.skipped += sum(size for _, size in last.plan.large)
            return last.snapshot
        plan = tree.make_plan(skip, there or {})
        snapshot = _read_snapshot(parts or modules.walk(root, skip), previous, include_non_persistent, there)
        if plan is not None and len(snapshot.fingerprints) == len(tree.tensors):  # not with packed weights, nor unsaved
            _keep(root, include_non_persistent, plan, snapshot)
        return snapshot


def _brought(tensors: Collection[Tensor]) -> dict[int, bytes]:
    """What devices say of tensors, by `id`, once nothing is under way there any more."""
    wait_for_devices(tensors)
    return read_device_tensors(tensors)


def _read_snapshot(
    parts: NamedModules,
    like: Snapshot | None,
    passing: bool,
    there: Mapping[int, bytes] | None = None,
    *,
    once: bool = False,
) -> Snapshot:
    """`there` is what devices have said of these tensors, where they were asked already."""
    known = like.fingerprints if like is not None else {}
    saved, not_saved = named_tensors(parts)
    tensors = [*saved, *not_saved] if passing else saved
    if there is None:
        there = _brought([tensor for _, tensor in tensors]) if devices.accelerator_in_use() else {}
    in_threads = find_large(tensor for _, tensor in tensors)
    room = max(_KEPT_AT_LEAST, sum(tensor.nbytes for tensor in in_threads.values()) // _KEPT_SHARE)
    read: dict[int, Fingerprint] = {}  # a tied tensor is read once
    with compute_digests(in_threads, untracked=once) as digested:
        for name, tensor in tensors:
            key = id(tensor)
            if key not in read and key not in in_threads:
                was = known.get(name)
                keep = room > 0 if was is None else was.has_values
                print_ = read[key] = fingerprint_of(tensor, keep, there.get(key))
                if print_.has_values:
                    room -= print_.size
    for key, tensor in in_threads.items():
        read[key] = fingerprint_of(tensor, False, digested[key])
    apart = {id(tensor) for _, tensor in not_saved} - {id(tensor) for _, tensor in saved} if not_saved else set()
    return Snapshot(
        fingerprints={name: read[id(tensor)] for name, tensor in tensors},
        non_persistent=frozenset(name for name, _ in not_saved) if passing else frozenset(),
        bytes=sum(map(_SIZE, read.values())) - sum(read[key].size for key in apart & read.keys()),
        has_uninitialized=not all(map(_INITIALISED, read.values())),
    )


def find_changes(
    model: str, before: Snapshot, now: Snapshot, parts: NamedModules, after: Site | None
) -> list[TensorChange]:
    """What is not as it was, buffers and small tensors first: they say how far they moved."""
    if before.fingerprints == now.fingerprints and not before.has_uninitialized:
        return []
    found: list[TensorChange] = []
    with undisturbed():
        saved, not_saved = named_tensors(parts)
        tensors = dict([*saved, *not_saved])
        for path, print_ in before.fingerprints.items():
            latest = now.fingerprints.get(path)
            if latest is None:
                found.append(TensorChange(model, path, "removed"))
            elif print_.initialized and not is_unchanged(print_, latest, tensors[path]):
                found.append(_change(model, path, print_, latest))
    # A buffer that is not saved and that appears, made when it is first needed, has not changed.
    came = now.fingerprints.keys() - before.fingerprints.keys() - now.non_persistent
    found.extend(TensorChange(model, path, "added") for path in now.fingerprints if path in came)
    passing = before.non_persistent | now.non_persistent
    buffers = {f"{path}.{name}" if path else name for path, part in parts for name, _ in part._buffers.items()}
    told = [
        replace(change, last_forward=after, persistent=change.path not in passing, buffer=change.path in buffers)
        for change in found
    ]
    return sorted(told, key=lambda change: change.max_abs is None)


def _last_of(root: nn.Module | ModuleTables, passing: bool) -> _Last | None:
    last = _last.get((id(root), passing))
    return last if last is not None and last.root() is root else None


def _keep(root: nn.Module | ModuleTables, passing: bool, plan: ReadPlan, snapshot: Snapshot) -> None:
    key = id(root), passing
    _last[key] = _Last(weakref.ref(root, lambda _: _last.pop(key, None)), plan, snapshot)


def named_tensors(parts: NamedModules) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """The tensors of a model by name, from its tables: what `state_dict()` saves, and the buffers that it does not.

    The caller is `undisturbed`: a packed weight is unpacked by an operator.
    Never by attribute: reading a parametrized weight can change its buffers.
    """
    saved: list[tuple[str, Tensor]] = []
    not_saved: list[tuple[str, Tensor]] = []
    for path, part in parts:
        prefix = f"{path}." if path else ""
        for name, tensor in part._parameters.items():
            if tensor is not None:
                saved.append((prefix + name, tensor))
        if part._buffers:
            passing = getattr(part, "_non_persistent_buffers_set", ())
            for name, tensor in part._buffers.items():
                if tensor is not None:
                    (not_saved if name in passing else saved).append((prefix + name, tensor))
        for name, weight in packed_weights(part).items():
            saved.extend((f"{prefix}{name}.{i}", tensor) for i, tensor in enumerate(_unpacked(weight)))
    return saved, not_saved


def _unpacked(value: object) -> Iterator[Tensor]:
    """The tensors in a packed weight: itself, its scales and its bias, or what an LSTM packs of each of its layers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.ScriptObject):
        yield from _unpacked(value.__getstate__())
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_unpacked, value))


def _change(model: str, path: str, before: Fingerprint, now: Fingerprint) -> TensorChange:
    for what, old, new in (
        ("shape", tuple(before.shape), tuple(now.shape)),
        ("dtype", before.dtype, now.dtype),
        ("device", before.device, now.device),
    ):
        if old != new:
            return TensorChange(model, path, f"{what} {old} -> {new}")
    old_values, new_values = stored_values(before), stored_values(now)
    if old_values is None or new_values is None or before.strides != now.strides:
        return TensorChange(model, path, "values")
    return TensorChange(model, path, "values", *_extent(old_values, new_values))


def _extent(old: Tensor, new: Tensor) -> tuple[int, int, float | None]:
    """How many elements changed, of how many, and the largest step where there is one to name."""
    size = old.element_size()
    bits = (old.view(torch.uint8) != new.view(torch.uint8)).view(-1, size).any(1)
    wide = torch.complex128 if old.is_complex() else torch.float64
    try:
        step = float((new.to(wide) - old.to(wide)).abs().max())
    except (RuntimeError, NotImplementedError):
        step = float("nan")
    return int(bits.sum()), old.numel(), step if step == step else None
