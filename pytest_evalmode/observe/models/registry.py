"""Which models there are in a window, what they are called, and which module belongs to which."""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Container, Iterator
from itertools import count

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.trace import ModuleInfo


class Registry:
    """The models by the modules that belong to them: a part of one is no other; who holds others takes them in."""

    def __init__(self) -> None:
        self.name_version = 0
        """Of the times that something may have come to be called otherwise."""
        self.models: list[TrackedModel] = []
        self._homes: dict[int, tuple[weakref.ref[nn.Module], TrackedModel, str]] = {}
        self._parts: dict[int, tuple[weakref.ref[nn.Module], type, int, ModuleInfo]] = {}
        self._names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._lock = threading.RLock()

    @abstractmethod
    def on_model_death(self, model: TrackedModel) -> None:
        """A model has died."""

    def set_name(self, module: nn.Module, name: str) -> None:
        """What to call a model should it run; the first name given stays."""
        module = modules.unwrap(module)
        if self._given_name(module) is None:
            self._names[id(module)] = weakref.ref(module), name
            self.name_version += 1

    def name_of(self, module: nn.Module) -> str:
        """What a module is called that is part of no watched model."""
        return self._given_name(module) or modules.type_name(module)

    def _given_name(self, module: nn.Module) -> str | None:
        named, name = self._names.get(id(module), (None, None))
        return name if named is not None and named() is module else None

    def register(self, module: nn.Module, name: str | None = None) -> TrackedModel:
        """Watch a model from now on.  A part of another is watched already; one that holds others takes in the rest."""
        module = modules.unwrap(module)
        home = self._home(module)
        if home is not None:
            return home[1]
        with self._lock:
            known = self._search(module)
            if known is not None:
                return known[0]
            name = name or self._given_name(module)
            parts = modules.walk(module)
            model = TrackedModel(parts, weakref.WeakMethod(self.on_model_death), named=name is not None)
            for path, part in parts:
                if id(part) in self._homes:
                    self._rehouse(model, path, part)
                else:
                    self._homes[id(part)] = weakref.ref(part), model, path
            model.own_name = self._unique(name or modules.type_name(module))
            self.models.append(model)
            self.name_version += 1
            return model

    def find_model(self, module: nn.Module) -> tuple[TrackedModel, str] | None:
        """The model that a module belongs to, and its path there."""
        home = self._home(module)
        return self._search(module) if home is None else (home[1], home[1].path_of(home[2]))

    def _home(self, module: nn.Module) -> tuple[weakref.ref[nn.Module], TrackedModel, str] | None:
        home = self._homes.get(id(module))
        return home if home is not None and home[0]() is module and home[1].module() is not None else None

    def find_part(self, module: nn.Module) -> ModuleInfo | None:
        """A module that belongs to a model as it is told, by the name that the model has now."""
        known = self._parts.get(id(module))
        if known is not None and known[0]() is module and known[1:3] == (type(module), self.name_version):
            return known[3]
        home = self.find_model(modules.unwrap(module))
        if home is None:
            return None
        part = ModuleInfo(home[0].name, home[1], modules.type_name(module))
        self._parts[id(module)] = weakref.ref(module), type(module), self.name_version, part
        return part

    def find_owners(self, parameter_ids: Container[int]) -> tuple[str, ...]:
        """The models that hold one of these parameters, by `id`."""
        names = (
            model.name
            for model in self.models
            if any(
                id(parameter) in parameter_ids for _, part in model.parts() for parameter in part._parameters.values()
            )
        )
        return tuple(dict.fromkeys(names))

    def paths(self) -> Iterator[tuple[str, str]]:
        """All modules and tensors by model and path."""
        for model in self.models:
            for path, part in model.parts():
                yield model.name, model.path_of(path)
                for name, _ in (*part._parameters.items(), *part._buffers.items()):
                    yield model.name, model.path_of(".".join(filter(None, (path, name))))

    def is_in_other_model(self, module: object, model: TrackedModel) -> bool:
        """Whether a module is at home in another model, which lives and was read."""
        home = self._homes.get(id(module))
        if home is None or home[0]() is not module or home[1] is model:
            return False
        return home[1].module() is not None and home[1].snapshot is not None

    def clear(self) -> None:
        """Let go of all models."""
        with self._lock:
            for model in self.models:
                model.release()
            self._homes.clear()
            self._names.clear()
            self._parts.clear()

    def _rehouse(self, model: TrackedModel, path: str, part: nn.Module) -> None:
        """Give a part another home, unless it has one: a model that the new one holds goes on as the model it is."""
        home = self._homes[id(part)]
        other = home[1] if home[0]() is part else None
        if other is None or other.module() is None:
            self._homes[id(part)] = (weakref.ref(part), model, path)
        elif other.module() is part:
            model.submodels[id(part)] = path, other
            if not other.is_named and other.parent is None:
                other.path_in_parent, other.parent = path, model

    def _search(self, module: nn.Module) -> tuple[TrackedModel, str] | None:
        """A module that was put into a watched model after the model was first seen."""
        with self._lock:
            for model in self.models:
                whole = model.module()
                for path, part in modules.walk(whole, model.submodels) if whole is not None else ():
                    if part is module:
                        self._homes[id(module)] = (weakref.ref(module), model, path)
                        return model, model.path_of(path)
        return None

    def _unique(self, name: str) -> str:
        taken = {model.name for model in self.models if model.parent is None}
        return next(n for n in _candidates(name) if n not in taken)


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}#{number}"
