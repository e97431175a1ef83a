"""The models of a window: their names, and the modules that belong to each."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Container, Iterator
from itertools import count

from torch import nn

from pytest_evalmode.observe import forks, modules
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.trace import ModuleInfo


class Registry:
    """Models that a window watches, found by their modules.

    A module belongs to one model.  A model that is already known when a larger one is added becomes its submodel.
    """

    def __init__(self) -> None:
        self.name_version = 0
        """Increases whenever the name of a model may have changed."""
        self.models: list[TrackedModel] = []
        self._owners: dict[int, tuple[weakref.ref[nn.Module], TrackedModel, str]] = {}
        """By the id of a module: the model that it belongs to, and its path there."""
        self._infos: dict[int, tuple[weakref.ref[nn.Module], type, int, ModuleInfo]] = {}
        self._given_names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._lock = forks.new_lock(self)

    @abstractmethod
    def on_model_death(self, model: TrackedModel) -> None:
        """Handle the death of a model, before its tensors are freed."""

    def set_name(self, module: nn.Module, name: str) -> None:
        """Set the name that a model will have if it runs.  The first name stays."""
        module = modules.unwrap(module)
        if self._given_name(module) is None:
            self._given_names[id(module)] = weakref.ref(module), name
            self.name_version += 1

    def name_of(self, module: nn.Module) -> str:
        """Return the name of a module that belongs to no watched model: the given name, or its type."""
        return self._given_name(module) or modules.type_name(module)

    def _given_name(self, module: nn.Module) -> str | None:
        ref, name = self._given_names.get(id(module), (None, None))
        return name if ref is not None and ref() is module else None

    def register(self, module: nn.Module, name: str | None = None) -> TrackedModel:
        """Return the model that a module belongs to; a new one if it does not belong to any.

        Models inside a new one become its submodels.
        """
        module = modules.unwrap(module)
        owner = self._owner(module)
        if owner is not None:
            return owner[1]
        with self._lock:
            known = self._search(module)
            if known is not None:
                return known[0]
            name = name or self._given_name(module)
            parts = modules.walk(module)
            model = TrackedModel(parts, weakref.WeakMethod(self.on_model_death), named=name is not None)
            for path, part in parts:
                if id(part) in self._owners:
                    self._reassign(model, path, part)
                else:
                    self._owners[id(part)] = weakref.ref(part), model, path
            model.own_name = self._unique(name or modules.type_name(module))
            self.models.append(model)
            self.name_version += 1
            return model

    def find_model(self, module: nn.Module) -> tuple[TrackedModel, str] | None:
        """Return the model that a module belongs to, and the module's path in the largest model that contains it."""
        owner = self._owner(module)
        return self._search(module) if owner is None else (owner[1], owner[1].path_of(owner[2]))

    def _owner(self, module: nn.Module) -> tuple[weakref.ref[nn.Module], TrackedModel, str] | None:
        owner = self._owners.get(id(module))
        return owner if owner is not None and owner[0]() is module and owner[1].module() is not None else None

    def find_part(self, module: nn.Module) -> ModuleInfo | None:
        """Return the current name of a module's model, its path there and its type; None if it belongs to no model."""
        known = self._infos.get(id(module))
        if known is not None and known[0]() is module and known[1:3] == (type(module), self.name_version):
            return known[3]
        owner = self.find_model(modules.unwrap(module))
        if owner is None:
            return None
        info = ModuleInfo(owner[0].name, owner[1], modules.type_name(module))
        self._infos[id(module)] = weakref.ref(module), type(module), self.name_version, info
        return info

    def find_owners(self, parameter_ids: Container[int]) -> tuple[str, ...]:
        """Return the names of the models that have one of these parameters."""
        names = (
            model.name
            for model in self.models
            if any(
                id(parameter) in parameter_ids for _, part in model.parts() for parameter in part._parameters.values()
            )
        )
        return tuple(dict.fromkeys(names))

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the model's name and the path of every module and tensor."""
        for model in self.models:
            for path, part in model.parts():
                yield model.name, model.path_of(path)
                for name, _ in (*part._parameters.items(), *part._buffers.items()):
                    yield model.name, model.path_of(".".join(filter(None, (path, name))))

    def is_in_other_model(self, module: object, model: TrackedModel) -> bool:
        """Return whether a module belongs to another model, which is alive and has a snapshot."""
        owner = self._owners.get(id(module))
        if owner is None or owner[0]() is not module or owner[1] is model:
            return False
        return owner[1].module() is not None and owner[1].snapshot is not None

    def clear(self) -> None:
        """Release all models."""
        with self._lock:
            for model in self.models:
                model.release()
            self._owners.clear()
            self._given_names.clear()
            self._infos.clear()

    def _reassign(self, model: TrackedModel, path: str, part: nn.Module) -> None:
        """Assign a module to a new model, unless it belongs to another one; that one becomes a submodel."""
        owner = self._owners[id(part)]
        other = owner[1] if owner[0]() is part else None
        if other is None or other.module() is None:
            self._owners[id(part)] = (weakref.ref(part), model, path)
        elif other.module() is part:
            model.submodels[id(part)] = path, other
            if not other.is_named and other.parent is None:
                other.path_in_parent, other.parent = path, model

    def _search(self, module: nn.Module) -> tuple[TrackedModel, str] | None:
        """Find a module that was added to a watched model after the model was first seen."""
        with self._lock:
            for model in self.models:
                root = model.module()
                for path, part in modules.walk(root, model.submodels) if root is not None else ():
                    if part is module:
                        self._owners[id(module)] = (weakref.ref(module), model, path)
                        return model, model.path_of(path)
        return None

    def _unique(self, name: str) -> str:
        taken = {model.name for model in self.models if model.parent is None}
        return next(n for n in _candidates(name) if n not in taken)


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}#{number}"
