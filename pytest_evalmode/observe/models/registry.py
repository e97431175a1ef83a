"""The models of a window: their names, and the modules that belong to each."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterator, MutableMapping
from itertools import chain, count

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.tracked_model import OnDeath, TrackedModel
from pytest_evalmode.trace import ModuleInfo, WatchedModel

_Owner = tuple[weakref.ref[nn.Module], TrackedModel, str]
"""A module, the model that it belongs to, and its path there."""


class Registry:
    """Models that a window watches, found by their modules.

    A module belongs to one model.  A model that is already known when a larger one is added becomes its submodel.
    """

    def __init__(self, on_death: OnDeath) -> None:
        """Args: on_death: a method that is called with a model that dies, before its tensors are freed."""
        self.name_version = 0
        """Increases whenever the name of a model may have changed."""
        self.models: list[TrackedModel] = []
        self._on_death = weakref.WeakMethod(on_death)
        self._owners: dict[int, _Owner] = {}
        """By the id of a module."""
        self._infos: dict[int, tuple[weakref.ref[nn.Module], type, int, ModuleInfo]] = {}
        self._given_names: MutableMapping[nn.Module, str] = WeakIdKeyDictionary()

    def set_name(self, module: nn.Module, name: str) -> None:
        """Set the name that a model will have if it runs.  The first name stays."""
        module = modules.unwrap(module)
        if module not in self._given_names:
            self._given_names[module] = name
            self.name_version += 1

    def register(self, module: nn.Module, name: str | None = None) -> TrackedModel:
        """Return the model that a module belongs to; a new one if it does not belong to any.

        Models inside a new one become its submodels.  Not safe for threads: call it with a lock.
        """
        module = modules.unwrap(module)
        owner = self._owner(module) or self._search(module)
        if owner is not None:
            return owner[1]
        name = name or self._given_names.get(module)
        parts = modules.walk(module)
        model = TrackedModel(parts, self._on_death, named=name is not None)
        for path, part in parts:
            self._assign(model, path, part)
        model.own_name = self._unique(name or modules.type_name(module))
        self.models.append(model)
        self.name_version += 1
        return model

    def forget(self, model: TrackedModel) -> None:
        """Leave a dead model out of the report."""
        self.models = [other for other in self.models if other is not model]

    def clear(self) -> None:
        """Release all models."""
        for model in self.models:
            model.release()
        self._owners.clear()
        self._given_names.clear()
        self._infos.clear()

    def find_model(self, module: nn.Module) -> tuple[TrackedModel, str] | None:
        """Return the model that a module belongs to, and the module's path in the largest model that contains it."""
        owner = self._owner(module) or self._search(module)
        return None if owner is None else (owner[1], owner[1].path_of(owner[2]))

    def locate(self, module: nn.Module) -> tuple[str, str]:
        """Return the name of a module's model and its path there; without a model, the name that it would have."""
        owner = self.find_model(module)
        if owner is None:
            return self._given_names.get(module) or modules.type_name(module), ""
        return owner[0].name, owner[1]

    def find_part(self, module: nn.Module) -> ModuleInfo | None:
        """Return the current name of a module's model, its path there and its type; None if it belongs to no model."""
        known = self._infos.get(id(module))
        if known is not None and known[0]() is module and known[1:3] == (type(module), self.name_version):
            return known[3]
        owner = self.find_model(modules.unwrap(module))
        if owner is None:
            return None
        model, path = owner
        root = (model.parent or model).module()
        is_code = not path or all(step.isidentifier() for step in path.split("."))
        code = "" if is_code or root is None else modules.path_as_code(root, path)
        info = ModuleInfo(model.name, path, modules.type_name(module), code=code)
        self._infos[id(module)] = weakref.ref(module), type(module), self.name_version, info
        return info

    def find_owners(self, parameter_ids: Container[int]) -> tuple[str, ...]:
        """Return the names of the models that have one of these parameters."""
        parts = ((model, part) for model in self.models for _, part in model.parts())
        owners = (model.name for model, part in parts if any(id(p) in parameter_ids for p in part._parameters.values()))
        return tuple(dict.fromkeys(owners))

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the model's name and the path of every module and tensor."""
        for model in self.models:
            for path, part in model.parts():
                yield model.name, model.path_of(path)
                for name in (*part._parameters, *part._buffers):
                    yield model.name, model.path_of(".".join(filter(None, (path, name))))

    def living_models(self) -> dict[str, nn.Module]:
        """Return the living models by name, without submodels."""
        roots = [model for model in self.models if model.parent is None]
        return {model.name: module for model in roots if (module := model.module()) is not None}

    def watched_models(self) -> tuple[WatchedModel, ...]:
        """Return the models for the report.  Losses, metrics and transforms are watched too, but are not models."""
        roots = [model for model in self.models if model.is_model and model.parent is None]
        return tuple(
            model.to_fact([model, *(other for other in self.models if other.parent is model)])
            for model in roots
            if model.forwards or not model.is_survivor
        )

    def is_in_other_model(self, module: nn.Module | None, model: TrackedModel) -> bool:
        """Return whether a module belongs to another model, which is alive and has a snapshot."""
        owner = self._owner(module)
        return owner is not None and owner[1] is not model and owner[1].snapshot is not None

    def _owner(self, module: nn.Module | None) -> _Owner | None:
        owner = self._owners.get(id(module))
        return owner if owner is not None and owner[0]() is module and owner[1].module() is not None else None

    def _assign(self, model: TrackedModel, path: str, part: nn.Module) -> None:
        """Assign a module to a new model, unless it belongs to another one; that one becomes a submodel."""
        owner = self._owner(part)
        if owner is None:
            self._owners[id(part)] = weakref.ref(part), model, path
        elif owner[1].module() is part:
            other = owner[1]
            model.submodels[id(part)] = path, other
            if not other.is_named and other.parent is None:
                other.path_in_parent, other.parent = path, model

    def _search(self, module: nn.Module) -> _Owner | None:
        """Find a module that was added to a watched model after the model was first seen."""
        for model in self.models:
            root = model.module()
            for path, part in modules.walk(root, model.submodels) if root is not None else ():
                if part is module:
                    owner = self._owners[id(module)] = weakref.ref(module), model, path
                    return owner
        return None

    def _unique(self, name: str) -> str:
        taken = {model.name for model in self.models if model.parent is None}
        numbered = (f"{name}#{number}" for number in count(2))
        return next(each for each in chain([name], numbered) if each not in taken)
