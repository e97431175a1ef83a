"""What the models of a window held when it began, and what of that has changed, whether they live or have died."""

from __future__ import annotations

from dataclasses import replace
from types import CodeType
from typing import Protocol

import torch
from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.registry import Registry
from pytest_evalmode.observe.models.surviving_submodules import find_surviving_submodules
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.state import devices, snapshot
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.trace import Site, TensorChange, WatchedModel


class Locate(Protocol):
    """Tells a line of code as the user knows it."""

    def __call__(self, code: CodeType, line: int) -> Site | None: ...


class Watch(Registry):
    """Reads the models of a window, and compares."""

    def __init__(self, locate: Locate, *, strict: bool = False) -> None:
        super().__init__()
        self.own_hooks: set[int] = set()
        """What models did about hooks by themselves, as they ran."""
        self.failures = ObserverErrors()
        self._locate = locate
        self._strict = strict
        self._changes: list[TensorChange] = []
        self._dead: list[TrackedModel] = []
        self._unread: list[TrackedModel] = []
        """Those that first ran while a graph was captured, which goes on."""

    def add(self, module: nn.Module, name: str | None = None, *, read: bool = True) -> TrackedModel:
        """Watch a model from now on, by this name unless it is watched already."""
        with self._lock:
            model = self.register(module, name)
            if read:
                self.read(model)
            return model

    def saved_fingerprints(self, module: nn.Module) -> dict[str, Fingerprint] | None:
        """What was last read of a module that is watched, or part of one: what is saved, by its name in it."""
        module = modules.unwrap(module)
        found = self.find_model(module)
        snapshot = found[0].full_snapshot() if found is not None else None
        if found is None or snapshot is None:
            return None
        path = found[1][len(found[0].prefix) :].lstrip(".")
        prefix = f"{path}." if path else ""
        saved = (
            (name, print_) for name, print_ in snapshot.fingerprints.items() if name not in snapshot.non_persistent
        )
        return {name.removeprefix(prefix): print_ for name, print_ in saved if name.startswith(prefix)}

    def read(self, model: TrackedModel) -> None:
        """Take what a model is now for what it was, unless that is known; once the capture of a graph has ended."""
        if model.snapshot is None and model.module() is not None:
            if devices.is_capturing():
                self._unread.append(model)
                captures.start(self)
                return
            with self._lock:
                model.set_snapshot(self._take(model))

    def read_pending(self) -> None:
        """A capture has ended: read the models that first ran in it, before a replay can change them."""
        captures.stop(self)
        waiting, self._unread = self._unread, []
        try:
            for model in waiting:
                self.read(model)
        except Exception as error:
            self.failures.append(error)

    def read_initialized(self, model: TrackedModel) -> None:
        """Read the parameters that got their shape in the forward that has just ended."""
        for _, other in model.submodels.values():
            self.read_initialized(other)
        before = model.snapshot
        if before is not None and before.has_uninitialized and model.module() is not None:
            with self._lock:
                fresh = self._take(model)
                # A layer that gives one of its tensors its shape fills the others anew.
                lazy = {_owner(name) for name, print_ in before.fingerprints.items() if not print_.initialized}
                known = {name: print_ for name, print_ in before.fingerprints.items() if _owner(name) not in lazy}
                model.set_snapshot(replace(fresh, fingerprints={**fresh.fingerprints, **known}))

    def compare(self) -> tuple[TensorChange, ...]:
        """What has changed since the models were last read, those that have died in between included."""
        with self._lock:
            self._bury_waiting()
            for model in self.models:
                self._compare(model)
            changes, self._changes = self._changes, []
            return tuple(changes)

    def reset_baseline(self) -> None:
        """Take what the models are now for the beginning."""
        with self._lock:
            for model in self.models:
                if model.module() is not None:
                    model.set_snapshot(self._take(model))

    def close(self) -> None:
        """Let go of all models."""
        if self._unread:
            captures.stop(self)
        self.clear()

    def living_models(self) -> dict[str, nn.Module]:
        """The models that live, by name; each with its parts."""
        whole = [model for model in self.models if model.parent is None]
        return {model.name: module for model in whole if (module := model.module()) is not None}

    def watched_models(self) -> tuple[WatchedModel, ...]:
        """The models that hold parameters; losses, metrics and transforms are watched but are no models."""
        whole = [model for model in self.models if model.is_model and model.parent is None]
        return tuple(self._fact(model) for model in whole if model.forwards or not model.is_survivor)

    def on_model_death(self, model: TrackedModel) -> None:
        """Called as a module dies, before its tensors are freed; by the collector at any moment, so it never waits."""
        if not self._lock.acquire(blocking=False):
            self._dead.append(model)
            return
        try:
            self._bury(model)
        except Exception as error:
            self.failures.append(error)
        finally:
            self._lock.release()

    def _bury_waiting(self) -> None:
        while self._dead:
            self._bury(self._dead.pop())

    def _bury(self, model: TrackedModel) -> None:
        """Judge a model that has died, and go on watching what lives on of it: a wrapper may be made for one call."""
        self.name_version += 1
        try:
            self._compare(model)
            before = model.snapshot
            living, lost = find_surviving_submodules(model.remains, model.submodels) if model.remains else ([], [])
            wrapped = bool(lost) and not any(map(modules.has_own_tensors, lost))
        finally:
            model.release()
        # Of a loss or an activation made for each batch nothing more is asked, nor of what only wrapped others.
        if wrapped or not model.is_model:
            self.models = [other for other in self.models if other is not model]
        left = [(path, part) for path, part in living if modules.has_tensors(part) and self.find_model(part) is None]
        heirs = [self._inherit(model, before, path, part) for path, part in left]
        for _, other in model.submodels.values():
            if other.parent is model:
                other.parent, other.path_in_parent = None, ""
            heirs.append(other)
        if wrapped:
            for heir in heirs:
                heir.forwards += model.forwards

    def _inherit(self, dead: TrackedModel, before: Snapshot | None, path: str, part: nn.Module) -> TrackedModel:
        """Watch a part of a model that has died, from where it was left."""
        heir = self.add(part, read=False)
        heir.is_survivor = True
        heir.last_call = dead.last_call
        if before is not None:
            heir.set_snapshot(before.of_submodule(path))
        return heir

    def _fact(self, model: TrackedModel) -> WatchedModel:
        parts = [model, *(other for other in self.models if other.parent is model)]
        return WatchedModel(
            model.name,
            model.type,
            sum(part.tensors for part in parts),
            sum(part.bytes for part in parts),
            sum(part.forwards for part in parts),
            tuple(sorted(frozenset().union(*(part.dtypes for part in parts)))),
            model.outline,
        )

    def _compare(self, model: TrackedModel) -> None:
        """Note what has changed, and take what is for the beginning of what may come."""
        now = self._take(model, model.snapshot) if model.snapshot is not None else None
        if model.snapshot is None or now is None or now is model.snapshot:
            return
        after = self._locate(*model.last_call) if model.last_call else None
        parts = model.parts()
        changes = snapshot.find_changes(model.name, model.snapshot, now, parts, after)
        holders = dict(parts) if changes else {}
        for change in changes:
            told = self.is_in_other_model(holders.get(_owner(change.path)), model)
            if (change.persistent or model.checks_unsaved_state) and not told:
                self._changes.append(replace(change, path=model.path_of(change.path)))
        model.set_snapshot(now)

    def _take(self, model: TrackedModel, like: Snapshot | None = None) -> Snapshot:
        holder = model.state_root()
        assert holder is not None  # or there would be no `before`, and nobody would ask
        return snapshot.take_snapshot(holder, like, skip=model.submodels, include_non_persistent=self._strict)


def _owner(name: str) -> str:
    """The path of the module that holds a tensor."""
    return name.rpartition(".")[0]


captures: Patch[Watch] = Patch("capture_end", torch.cuda.CUDAGraph)


@captures.replace_with
def _captured(self: torch.cuda.CUDAGraph) -> None:
    captures.original(self)
    for watch in captures.observers:
        watch.read_pending()
