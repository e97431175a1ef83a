"""The models of a window: which there are, what they are called, and what they held when it began."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import CodeType
from typing import Protocol

import torch
from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.failures import Failures
from pytest_evalmode.observe.models import modes
from pytest_evalmode.observe.models.history import History
from pytest_evalmode.observe.state import devices, leaks, snapshot
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.observe.wrapped import Wrapped
from pytest_evalmode.trace import Drift, Leak, Site, TensorChange, WatchedModel


class Locate(Protocol):
    """Tells a line of code as the user knows it."""

    def __call__(self, code: CodeType, line: int) -> Site | None: ...


class Model:
    """A model of the window.  It is not kept alive: when it dies, it is judged by the tables that it leaves behind.

    They do hold its parts: one whose parts refer back to it, by a hook that is a method of its own, say, lives on until
    the end of the window.
    """

    def __init__(self, parts: modules.Parts, watch: weakref.ReferenceType[Watch], *, named: bool) -> None:
        module: nn.Module = parts[0][1]
        self.own_name = ""
        self.place = ""
        """Its path in a larger model that turned up later; not for one that was given a name of its own."""
        self.whole: Model | None = None
        """That larger model."""
        self.named = named
        self.type = modules.type_name(module)
        self.is_model = modules.is_model(parts)
        self.has_state = self.is_model or modes.has_mode(parts)
        """Whether what is not saved of it should stay as it is, too: a metric is there to count."""
        self.others: dict[int, tuple[str, Model]] = {}
        """The parts that are models of their own, by `id`, with their paths here."""
        self.inherited = False
        """Whether it is watched for what it was part of, which has died."""
        self.forwards = 0
        self.before: Snapshot | None = None
        self.tensors = 0
        self.bytes = 0
        self.dtypes: frozenset[str] = frozenset()
        self.outline: tuple[tuple[str, str], ...] = ()
        """Path and type of each module in it, where that is to be shown."""
        self.flags: leaks.Baseline | None = None
        """How a shared model was set, where that is asked for."""
        self.drift: Drift | None = None
        self.last: tuple[CodeType, int] | None = None
        """Where the model was last called from."""
        self.remains: modules.Remains | None = modules.remains(module)

        def die(_: object) -> None:
            registry = watch()
            if registry is not None:
                registry.bury(self)

        self.module = weakref.ref(module, die)

    @property
    def name(self) -> str:
        return self.own_name if self.whole is None else self.whole.name

    @property
    def prefix(self) -> str:
        """Its path in the largest model that holds it: that may have turned up last of several."""
        return "" if self.whole is None else ".".join(filter(None, (self.whole.prefix, self.place)))

    def path_of(self, name: str) -> str:
        """The path, in the largest model that holds this one, of what is called so here."""
        return ".".join(filter(None, (self.prefix, name)))

    def parts(self) -> modules.Parts:
        """Where to read the state: of the module, or after its death of what it left, until that is released."""
        for key in [key for key, (_, other) in self.others.items() if other.module() is None]:
            del self.others[key]  # another may be there by now
        module = self.module()
        holder = self.remains if module is None else module
        return [] if holder is None else modules.walk(holder, self.others)

    def held(self) -> Snapshot | None:
        """What it was, the parts that are models of their own included."""
        if self.before is None:
            return None
        prints, passing = dict(self.before.prints), set(self.before.passing)
        for path, other in self.others.values():
            inner = other.held()
            if inner is not None:
                prints.update((f"{path}.{name}", print_) for name, print_ in inner.prints.items())
                passing.update(f"{path}.{name}" for name in inner.passing)
        return replace(self.before, prints=prints, passing=frozenset(passing))

    def remember(self, snapshot: Snapshot) -> None:
        self.before = snapshot
        self.tensors = len(snapshot.prints) - len(snapshot.passing)
        self.bytes = snapshot.bytes
        dtypes = {print_.dtype for print_ in snapshot.prints.values()}
        self.dtypes = frozenset(str(dtype).removeprefix("torch.") for dtype in dtypes)

    def release(self) -> None:
        self.remains = None
        self.before = None


class Watch:
    """The registry of a window's models."""

    def __init__(self, locate: Locate, *, strict: bool = False, shown: bool = False) -> None:
        self._changes: list[TensorChange] = []
        self.own_hooks: set[int] = set()
        """What models did about hooks by themselves, as they ran."""
        self.failures = Failures()
        self._locate = locate
        self._strict = strict
        self._shown = shown
        self._models: list[Model] = []
        self._homes: dict[int, tuple[weakref.ref[nn.Module], Model, str]] = {}
        self._names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._dead: list[Model] = []
        self._unread: list[Model] = []
        """Those that first ran while a graph was captured, which goes on."""
        self._lock = threading.RLock()

    def name(self, module: nn.Module, name: str) -> None:
        """What to call a model should it run; the first name given stays."""
        module = modules.unwrapped(module)
        if self._given_name(module) is None:
            self._names[id(module)] = weakref.ref(module), name

    def name_of(self, module: nn.Module) -> str:
        """What a module is called that is part of no watched model."""
        return self._given_name(module) or modules.type_name(module)

    def _given_name(self, module: nn.Module) -> str | None:
        named, name = self._names.get(id(module), (None, None))
        return name if named is not None and named() is module else None

    def share(self, module: nn.Module, history: History | None) -> None:
        """Watch a model that outlives the test: how it is set, and, with a history, what it was before."""
        model = self.add(module)
        module = modules.unwrapped(module)
        if self._strict and model.flags is None and model.module() is module:
            self._note_flags(model)
            now = model.held()
            if history is not None and now is not None:
                model.drift = history.drift(module, model.name, now)

    def _note_flags(self, model: Model) -> None:
        """How a model is set, and the parts of it that are models of their own."""
        module = model.module()
        if module is not None and model.flags is None:
            flags = leaks.model_flags(module, model.others)
            model.flags = leaks.Baseline(flags, flags)
            for _, other in model.others.values():
                self._note_flags(other)

    def leaks(self) -> tuple[Leak, ...]:
        """How shared models have been set since this was last asked."""
        return tuple(
            replace(leak, name=model.path_of(leak.name))
            for model in self._models
            if model.flags is not None and (module := model.module()) is not None
            for leak in model.flags.since(model.name, leaks.model_flags(module, model.others), self.own_hooks)
        )

    def put_back(self) -> set[tuple[str | None, str]]:
        """The settings of shared models, by model and name, that are what they were at first."""
        return {
            (model.name, model.path_of(name))
            for model in self._models
            if model.flags is not None
            for name in model.flags.put_back()
        }

    def drifts(self) -> tuple[Drift, ...]:
        return tuple(model.drift for model in self._models if model.drift is not None)

    def keep(self, history: History, by: str, *, drifted: bool) -> None:
        """Remember what the shared models are at the end of a test; of `drifted` ones, if that has been told."""
        for model in self._models:
            module, now = model.module(), model.held()
            if model.flags is not None and module is not None and now is not None and (drifted or not model.drift):
                history.remember(module, now, by)

    def add(self, module: nn.Module, name: str | None = None, *, read: bool = True) -> Model:
        """Watch a model from now on.  A part of another is watched already; one that holds others takes in the rest."""
        module = modules.unwrapped(module)
        with self._lock:
            known = self.find(module)
            if known is not None:
                return known[0]
            name = name or self._given_name(module)
            parts = modules.walk(module)
            model = Model(parts, weakref.ref(self), named=name is not None)
            for path, part in parts:
                self._house(model, path, part)
            model.own_name = self._unique(name or modules.type_name(module))
            if self._shown:
                model.outline = tuple((path, modules.type_name(part)) for path, part in parts)
            if read:
                self.read(model)
            self._models.append(model)
            return model

    def find(self, module: nn.Module) -> tuple[Model, str] | None:
        """The model that a module belongs to, and its path there."""
        home = self._homes.get(id(module))
        if home is None or home[0]() is not module or home[1].module() is None:
            return self._search(module)
        return home[1], home[1].path_of(home[2])

    def held(self, module: nn.Module) -> dict[str, Fingerprint] | None:
        """What was last read of a module that is watched, or part of one: what is saved, by its name in it."""
        module = modules.unwrapped(module)
        found = self.find(module)
        snapshot = found[0].held() if found is not None else None
        if found is None or snapshot is None:
            return None
        path = found[1][len(found[0].prefix) :].lstrip(".")
        prefix = f"{path}." if path else ""
        saved = ((name, print_) for name, print_ in snapshot.prints.items() if name not in snapshot.passing)
        return {name.removeprefix(prefix): print_ for name, print_ in saved if name.startswith(prefix)}

    def read(self, model: Model) -> None:
        """Take what a model is now for what it was, unless that is known; once the capture of a graph has ended."""
        if model.before is None and model.module() is not None:
            if devices.is_capturing():
                self._unread.append(model)
                captures.start(self)
                return
            with self._lock:
                model.remember(self._take(model))

    def read_waiting(self) -> None:
        """A capture has ended: read the models that first ran in it, before a replay can change them."""
        captures.stop(self)
        waiting, self._unread = self._unread, []
        try:
            for model in waiting:
                self.read(model)
        except Exception as error:
            self.failures.append(error)

    def finish_lazy(self, model: Model) -> None:
        """Read the parameters that got their shape in the forward that has just ended."""
        before = model.before
        if before is not None and before.unfinished and model.module() is not None:
            with self._lock:
                fresh = self._take(model)
                # A layer that gives one of its tensors its shape fills the others anew.
                lazy = {_owner(name) for name, print_ in before.prints.items() if not print_.initialised}
                known = {name: print_ for name, print_ in before.prints.items() if _owner(name) not in lazy}
                model.remember(replace(fresh, prints={**fresh.prints, **known}))

    def compare(self) -> tuple[TensorChange, ...]:
        """What has changed since the models were last read, those that have died in between included."""
        with self._lock:
            self._bury_waiting()
            for model in self._models:
                self._compare(model)
            changes, self._changes = self._changes, []
            return tuple(changes)

    def begin_anew(self) -> None:
        """Take what the models are now for the beginning."""
        with self._lock:
            for model in self._models:
                module = model.module()
                if module is not None:
                    model.remember(self._take(model))
                    if model.flags is not None:
                        model.flags.last = leaks.model_flags(module, model.others)

    def close(self) -> None:
        """Let go of all models."""
        if self._unread:
            captures.stop(self)
        with self._lock:
            for model in self._models:
                model.release()
            self._homes.clear()
            self._names.clear()

    def facts(self) -> tuple[WatchedModel, ...]:
        """The models that hold parameters; losses, metrics and transforms are watched but are no models."""
        whole = [model for model in self._models if model.is_model and model.whole is None]
        return tuple(self._fact(model) for model in whole if model.forwards or not model.inherited)

    def bury(self, model: Model) -> None:
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

    def _bury(self, model: Model) -> None:
        """Judge a model that has died, and go on watching what lives on of it: a wrapper may be made for one call."""
        try:
            self._compare(model)
            before = model.before
            living, lost = modules.survivors(model.remains, model.others) if model.remains else ([], [])
            wrapped = bool(lost) and not any(map(modules.is_stateful, lost))
        finally:
            model.release()
        # Of a loss or an activation made for each batch nothing more is asked, nor of what only wrapped others.
        if wrapped or not model.is_model:
            self._models = [other for other in self._models if other is not model]
        left = [(path, part) for path, part in living if modules.has_state(part) and self.find(part) is None]
        heirs = [self._inherit(model, before, path, part) for path, part in left]
        for _, other in model.others.values():
            if other.whole is model:
                other.whole, other.place = None, ""
            heirs.append(other)
        if wrapped:
            for heir in heirs:
                heir.forwards += model.forwards

    def _inherit(self, dead: Model, before: Snapshot | None, path: str, part: nn.Module) -> Model:
        """Watch a part of a model that has died, from where it was left."""
        heir = self.add(part, read=False)
        heir.inherited = True
        heir.last = dead.last
        if before is not None:
            heir.remember(before.of(path))
        return heir

    def _fact(self, model: Model) -> WatchedModel:
        parts = [model, *(other for other in self._models if other.whole is model)]
        return WatchedModel(
            model.name,
            model.type,
            sum(part.tensors for part in parts),
            sum(part.bytes for part in parts),
            sum(part.forwards for part in parts),
            tuple(sorted(frozenset().union(*(part.dtypes for part in parts)))),
            model.outline,
        )

    def _compare(self, model: Model) -> None:
        """Note what has changed, and take what is for the beginning of what may come."""
        if model.before is None:
            return
        after = self._locate(*model.last) if model.last else None
        parts = model.parts()
        now = snapshot.take(parts, model.before, passing=self._strict)
        for change in snapshot.changes(model.name, model.before, now, parts, after):
            if (change.persistent or model.has_state) and not self._is_told_by_another(model, parts, change):
                self._changes.append(replace(change, path=model.path_of(change.path)))
        model.remember(now)

    def _is_told_by_another(self, model: Model, parts: modules.Parts, change: TensorChange) -> bool:
        """Whether a tensor is held by a part that is at home in another model, which lives."""
        holder = dict(parts).get(change.path.rpartition(".")[0])
        home = self._homes.get(id(holder))
        if home is None or home[0]() is not holder or home[1] is model:
            return False
        return home[1].module() is not None and home[1].before is not None

    def _take(self, model: Model) -> Snapshot:
        return snapshot.take(model.parts(), passing=self._strict)

    def _house(self, model: Model, path: str, part: nn.Module) -> None:
        """Give a part its home, unless it has one: a model that the new one holds goes on as the model it is."""
        home = self._homes.get(id(part))
        other = home[1] if home is not None and home[0]() is part else None
        if other is None or other.module() is None:
            self._homes[id(part)] = (weakref.ref(part), model, path)
        elif other.module() is part:
            model.others[id(part)] = path, other
            if not other.named and other.whole is None:
                other.place, other.whole = path, model

    def _search(self, module: nn.Module) -> tuple[Model, str] | None:
        """A module that was put into a watched model after the model was first seen."""
        with self._lock:
            for model in self._models:
                whole = model.module()
                for path, part in modules.walk(whole, model.others) if whole is not None else ():
                    if part is module:
                        self._homes[id(module)] = (weakref.ref(module), model, path)
                        return model, model.path_of(path)
        return None

    def _unique(self, name: str) -> str:
        taken = {model.name for model in self._models if model.whole is None}
        return next(n for n in self._candidates(name) if n not in taken)

    @staticmethod
    def _candidates(name: str) -> Iterator[str]:
        yield name
        number = 2
        while True:
            yield f"{name}#{number}"
            number += 1


def _owner(name: str) -> str:
    """The path of the module that holds a tensor."""
    return name.rpartition(".")[0]


captures: Wrapped[Watch] = Wrapped("capture_end", torch.cuda.CUDAGraph)


@captures.by
def _captured(self: torch.cuda.CUDAGraph) -> None:
    captures.original(self)
    for watch in captures.observers:
        watch.read_waiting()
