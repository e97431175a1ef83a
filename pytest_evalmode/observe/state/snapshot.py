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
from pytest_evalmode.observe.modules import Parts, Remains, packed
from pytest_evalmode.observe.state import devices, digest_cache, read_plan
from pytest_evalmode.observe.state.digests import brought, digests, large, settle
from pytest_evalmode.observe.state.fingerprint import Fingerprint, fingerprint, same, undisturbed, values
from pytest_evalmode.observe.state.read_plan import Plan
from pytest_evalmode.trace import Site, TensorChange

_KEPT_AT_LEAST = 1 << 20
_KEPT_SHARE = 50

_SIZE = attrgetter("size")
_INITIALISED = attrgetter("initialised")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a model held at one moment, by qualified name."""

    prints: dict[str, Fingerprint]
    passing: frozenset[str]
    """The names of the non-persistent buffers, which `state_dict()` does not save."""
    bytes: int
    unfinished: bool
    """Whether a lazy parameter has yet to be given its shape."""

    def of(self, path: str) -> Snapshot:
        """What a part of the model held, by its path there."""
        start = f"{path}."
        prints = {name.removeprefix(start): print_ for name, print_ in self.prints.items() if name.startswith(start)}
        passing = frozenset(name.removeprefix(start) for name in self.passing if name.startswith(start))
        size = sum(print_.size for name, print_ in prints.items() if name not in passing)
        return Snapshot(prints, passing, size, not all(map(_INITIALISED, prints.values())))


@dataclass(frozen=True, slots=True)
class _Last:
    """What was last read of a tree."""

    root: weakref.ref[Any]
    plan: Plan
    snapshot: Snapshot


_last: dict[tuple[int, bool], _Last] = {}


def take(
    root: nn.Module | Remains,
    like: Snapshot | None = None,
    *,
    skip: Collection[int] = (),
    passing: bool = False,
    once: bool = False,
) -> Snapshot:
    """Read the parameters and buffers of a model but for the parts to `skip`; those that are `passing`, on request.

    Small tensors are kept by value while they are a small part of all; what `like` kept so is kept so again.  Of what
    is read `once` alone, as what is left of a model that has died is, the kernel need not tell who writes to it: that
    takes longer than to read it.
    """
    with undisturbed():
        elsewhere = devices.in_use() is not None
        last = _last_of(root, passing)
        once = last is None and (once or isinstance(root, Remains))
        tree = last.plan.tree(skip) if last is not None else None
        parts: Parts = []
        if tree is None:
            last, parts = None, modules.walk(root, skip)
            if not once and (elsewhere or digest_cache.memory() is not None):
                tree = read_plan.tree([part for _, part in parts], skip, passing=passing)
        there = _brought(tree.tensors) if tree is not None and elsewhere else None
        if tree is None:
            return _read(parts, like, passing, once=once)
        if last is not None and like in (None, last.snapshot) and tree.agrees(last.plan, there or {}):
            digest_cache.tally.unread += sum(size for _, size in last.plan.large)
            return last.snapshot
        plan = tree.plan(skip, there or {})
        snapshot = _read(parts or modules.walk(root, skip), like, passing, there)
        if plan is not None and len(snapshot.prints) == len(tree.tensors):  # not with packed weights, nor unsaved
            _keep(root, passing, plan, snapshot)
        return snapshot


def _brought(tensors: Collection[Tensor]) -> dict[int, bytes]:
    """What devices say of tensors, by `id`, once nothing is under way there any more."""
    settle(tensors)
    return brought(tensors)


def _read(
    parts: Parts,
    like: Snapshot | None,
    passing: bool,
    there: Mapping[int, bytes] | None = None,
    *,
    once: bool = False,
) -> Snapshot:
    """`there` is what devices have said of these tensors, where they were asked already."""
    known = like.prints if like is not None else {}
    saved, not_saved = named_tensors(parts)
    tensors = [*saved, *not_saved] if passing else saved
    if there is None:
        there = _brought([tensor for _, tensor in tensors]) if devices.in_use() else {}
    in_threads = large(tensor for _, tensor in tensors)
    room = max(_KEPT_AT_LEAST, sum(tensor.nbytes for tensor in in_threads.values()) // _KEPT_SHARE)
    read: dict[int, Fingerprint] = {}  # a tied tensor is read once
    with digests(in_threads, once=once) as digested:
        for name, tensor in tensors:
            key = id(tensor)
            if key not in read and key not in in_threads:
                was = known.get(name)
                keep = room > 0 if was is None else was.kept
                print_ = read[key] = fingerprint(tensor, keep, there.get(key))
                if print_.kept:
                    room -= print_.size
    for key, tensor in in_threads.items():
        read[key] = fingerprint(tensor, False, digested[key])
    apart = {id(tensor) for _, tensor in not_saved} - {id(tensor) for _, tensor in saved} if not_saved else set()
    return Snapshot(
        prints={name: read[id(tensor)] for name, tensor in tensors},
        passing=frozenset(name for name, _ in not_saved) if passing else frozenset(),
        bytes=sum(map(_SIZE, read.values())) - sum(read[key].size for key in apart & read.keys()),
        unfinished=not all(map(_INITIALISED, read.values())),
    )


def changes(model: str, before: Snapshot, now: Snapshot, parts: Parts, after: Site | None) -> list[TensorChange]:
    """What is not as it was, buffers and small tensors first: they say how far they moved."""
    if before.prints == now.prints and not before.unfinished:
        return []
    found: list[TensorChange] = []
    with undisturbed():
        saved, not_saved = named_tensors(parts)
        tensors = dict([*saved, *not_saved])
        for path, print_ in before.prints.items():
            latest = now.prints.get(path)
            if latest is None:
                found.append(TensorChange(model, path, "removed"))
            elif print_.initialised and not same(print_, latest, tensors[path]):
                found.append(_change(model, path, print_, latest))
    # A buffer that is not saved and that appears, made when it is first needed, has not changed.
    came = now.prints.keys() - before.prints.keys() - now.passing
    found.extend(TensorChange(model, path, "added") for path in now.prints if path in came)
    passing = before.passing | now.passing
    buffers = {f"{path}.{name}" if path else name for path, part in parts for name, _ in part._buffers.items()}
    told = [
        replace(change, after=after, persistent=change.path not in passing, buffer=change.path in buffers)
        for change in found
    ]
    return sorted(told, key=lambda change: change.max_abs is None)


def _last_of(root: nn.Module | Remains, passing: bool) -> _Last | None:
    last = _last.get((id(root), passing))
    return last if last is not None and last.root() is root else None


def _keep(root: nn.Module | Remains, passing: bool, plan: Plan, snapshot: Snapshot) -> None:
    key = id(root), passing
    _last[key] = _Last(weakref.ref(root, lambda _: _last.pop(key, None)), plan, snapshot)


def named_tensors(parts: Parts) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
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
        for name, weight in packed(part).items():
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
    old_values, new_values = values(before), values(now)
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
