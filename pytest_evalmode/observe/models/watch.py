"""State of a window's models: read when the window begins, compared when it ends or when a model dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import CodeType

import torch
from torch import nn

from pytest_evalmode import forks
from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.model_code import tensor_writes
from pytest_evalmode.observe.models.registry import Registry
from pytest_evalmode.observe.models.surviving_submodules import find_surviving_submodules
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.private_api import disable_torch_function
from pytest_evalmode.observe.state import devices, snapshot
from pytest_evalmode.observe.state.fingerprint import (
    Fingerprint,
    fingerprint_of,
    has_same_bytes,
    is_unchanged,
    undisturbed,
)
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.trace import Site, TensorChange

_SAMPLE = 8
"""Number of small tensors that are compared around a model's first forward."""


class Watch(Observer):
    """Watches the models of one window: reads their state, compares it, and collects the changes."""

    patched = (patches.capture_end,)

    def __init__(self, find_site: Callable[[CodeType, int], Site | None], *, strict: bool = False) -> None:
        super().__init__()
        self.registry = Registry(self.on_model_death)
        self.own_hooks: set[int] = set()
        """Keys of the hooks that models added or removed in their own forward."""
        self._find_site = find_site
        self._strict = strict
        self._changes: list[TensorChange] = []
        self._unprocessed_deaths: list[TrackedModel] = []
        self._unread: list[TrackedModel] = []
        """Models that first ran during the CUDA graph capture in progress."""
        self._lock = forks.new_lock(self)
        self._is_busy = False
        """Whether the thread that has the lock reads or compares models."""

    def add(self, module: nn.Module, name: str | None = None, *, read: bool = True) -> TrackedModel:
        """Start watching a model.  The name is used unless the model is watched already."""
        with self._exclusively():
            model = self.registry.register(module, name)
            if read:
                self.read(model)
            return model

    def saved_fingerprints(self, module: nn.Module) -> dict[str, Fingerprint] | None:
        """Return the last fingerprints of a watched module's saved tensors by name; None if it was not read."""
        module = modules.unwrap(module)
        owner = self.registry.find_model(module)
        snapshot = owner[0].full_snapshot() if owner is not None else None
        if owner is None or snapshot is None:
            return None
        return snapshot.of_submodule(owner[1][len(owner[0].prefix) :].lstrip(".")).saved

    def read(self, model: TrackedModel) -> None:
        """Read the initial state of a model, unless it was read; during a graph capture, postpone that to its end."""
        if model.snapshot is None and model.module() is not None:
            if devices.is_capturing():
                self._unread.append(model)
                self.start()
                return
            with self._exclusively():
                model.set_snapshot(self._take_snapshot(model))

    def date_changes(self, model: TrackedModel) -> None:
        """Compare some tensors when a model's first forward begins and ends, so that their changes can be dated.

        Few are read, as every window pays for it.
        """
        root, before, begins = model.module(), model.snapshot, model.first_forward == "pending"
        model.first_forward = "running" if begins else "ended"
        if root is None or before is None or devices.accelerator_in_use() is not None:
            return
        if begins:
            names = [name for name, fingerprint in before.fingerprints.items() if fingerprint.has_values]
            own = [name for name in names if "." not in name][: _SAMPLE // 2]
            model.dates = dict.fromkeys((*own, *names[:: len(names) // (_SAMPLE - len(own)) + 1]), "after")
        if begins and model.seen_late:
            return
        known = [(name, before.fingerprints[name]) for name, date in model.dates.items() if date == "after"]
        with disable_torch_function():  # nothing is dispatched
            found = [(name, old, snapshot.find_tensor(root, name)) for name, old in known]
            found = [(name, old, tensor) for name, old, tensor in found if not has_same_bytes(old, tensor)]
        with undisturbed() if found else nullcontext():
            for name, old, tensor in found:
                if tensor is not None and not is_unchanged(old, fingerprint_of(tensor, old.has_values), tensor):
                    model.dates[name] = "before" if begins else "inside"
                    if not begins:
                        sites = (self._find_site(*write) for write in tensor_writes.find_writes(root, name))
                        model.write_lines[name] = next((site for site in sites if site is not None), None)

    def read_pending(self) -> None:
        """Read the models that first ran during a graph capture that has ended, before a replay can change them."""
        self.stop()
        unread, self._unread = self._unread, []
        with self.errors:
            for model in unread:
                self.read(model)

    def read_initialized(self, model: TrackedModel) -> None:
        """Read the lazy tensors that got their shape in the forward that has just ended."""
        for _, other in model.submodels.values():
            self.read_initialized(other)
        before = model.snapshot
        if before is not None and before.has_uninitialized and model.module() is not None:
            with self._exclusively():
                now = self._take_snapshot(model)
                # Other modules keep their earlier fingerprints: what happened to them in this forward is a change.  A
                # layer that materializes one of its tensors fills its others too.
                lazy = {_owner(name) for name, old in before.fingerprints.items() if not old.initialized}
                known = {name: old for name, old in before.fingerprints.items() if _owner(name) not in lazy}
                model.set_snapshot(replace(now, fingerprints={**now.fingerprints, **known}))

    def compare(self) -> tuple[TensorChange, ...]:
        """Return what changed since the last call, also in models that have died since."""
        with self._exclusively():
            self._process_deaths()
            for model in self.registry.models:
                self._compare(model)
            changes, self._changes = self._changes, []
            return tuple(changes)

    def reset_baseline(self) -> None:
        """Compare the models with their current state from now on."""
        with self._exclusively():
            for model in self.registry.models:
                if model.module() is not None:
                    model.set_snapshot(self._take_snapshot(model))

    def close(self) -> None:
        """Release all models."""
        self.stop()
        with self._exclusively():
            self.registry.clear()

    def on_model_death(self, model: TrackedModel) -> None:
        """Compare a dying model.  The garbage collector may call this at any time, so it does not wait for the lock."""
        self._unprocessed_deaths.append(model)
        lock = self._lock  # after a fork there is a new one
        if self._is_busy or not lock.acquire(blocking=False):
            return
        try:
            with self._exclusively():
                pass
        except Exception as error:
            self.errors.append(error)
        finally:
            lock.release()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the lock.  A model that dies meanwhile, at whatever line, is compared at the end."""
        with self._lock:
            was_busy, self._is_busy = self._is_busy, True
            try:
                yield
                if not was_busy:
                    self._process_deaths()
            finally:
                self._is_busy = was_busy

    def _process_deaths(self) -> None:
        while self._unprocessed_deaths:
            self._process_death(self._unprocessed_deaths.pop())

    def _process_death(self, model: TrackedModel) -> None:
        """Compare a model that has died, and watch its surviving submodules: it may be a wrapper made for one call."""
        self.registry.name_version += 1
        try:
            self._compare(model)
            before = model.snapshot
            living, dead = find_surviving_submodules(model.tables, model.submodels) if model.tables else ([], [])
            is_wrapper = bool(dead) and not any(map(modules.own_tensors, dead))
        finally:
            model.release()
        # Forget wrappers and modules that are not models: a loss or an activation may be made for each batch.
        if is_wrapper or not model.is_model:
            self.registry.forget(model)
        find_model = self.registry.find_model
        new = [(path, part) for path, part in living if modules.has_tensors(part) and find_model(part) is None]
        survivors = [self._add_survivor(model, before, path, part) for path, part in new]
        for _, other in model.submodels.values():
            if other.parent is model:
                other.parent, other.path_in_parent = None, ""
            survivors.append(other)
        if is_wrapper:  # its forwards were theirs
            for survivor in survivors:
                survivor.forwards += model.forwards

    def _add_survivor(self, dead: TrackedModel, before: Snapshot | None, path: str, part: nn.Module) -> TrackedModel:
        """Watch a surviving submodule, starting with the last snapshot of the model that has died."""
        survivor = self.add(part, read=False)
        survivor.is_survivor = True
        survivor.last_call = dead.last_call
        if before is not None:
            survivor.set_snapshot(before.of_submodule(path))
        return survivor

    def _compare(self, model: TrackedModel) -> None:
        """Store what changed in a model since it was last read, and keep its current state as the new baseline."""
        before = model.snapshot
        if before is None or (now := self._take_snapshot(model, before)) is before:
            return
        last_forward = self._find_site(*model.last_call) if model.last_call else None
        parts = model.parts()
        changes = snapshot.find_changes(model.name, before, now, parts, last_forward)
        modules_by_path = dict(parts) if changes else {}
        for change in changes:
            # A module that two models share is reported once.
            is_reported = self.registry.is_in_other_model(modules_by_path.get(_owner(change.path)), model)
            if (change.persistent or model.checks_unsaved_state) and not is_reported:
                self._changes.append(
                    replace(
                        change,
                        path=model.path_of(change.path),
                        first_forward=self._find_site(*model.first_call) if model.first_call else None,
                        written=model.dates.get(change.path, ""),
                        written_at=model.write_lines.get(change.path),
                        seen_late=model.seen_late,
                    )
                )
        model.dates, model.write_lines = {}, {}
        model.set_snapshot(now)

    def _take_snapshot(self, model: TrackedModel, previous: Snapshot | None = None) -> Snapshot:
        root = model.state_root()
        assert root is not None  # callers check that the module is alive or that there is a snapshot
        return snapshot.take_snapshot(root, previous, skip=model.submodels, include_non_persistent=self._strict)


def _owner(name: str) -> str:
    """Return the path of the module that a tensor belongs to."""
    return name.rpartition(".")[0]


@patches.capture_end.replace_with
def _capture_end(self: torch.cuda.CUDAGraph) -> None:
    patches.capture_end.original(self)
    for watch in patches.capture_end.observers:
        watch.read_pending()
