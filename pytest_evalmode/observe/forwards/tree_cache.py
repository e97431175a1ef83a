"""Cache of facts about the modules of a model, which stay the same from forward to forward.

They are computed anew if a module, its type, its training flag, its hooks or its forward has changed.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import attrgetter, contains, is_not, itemgetter

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.source import forward_code
from pytest_evalmode.trace import Observation

GRAPH_TYPES = (torch.jit.ScriptModule, torch.fx.GraphModule)

_MAX_TREES = 256

_DICT, _COMPILED = attrgetter("__dict__"), attrgetter("_compiled_call_impl")
_TRAINING, _CHILDREN, _PRE_HOOKS, _HOOKS = map(
    itemgetter, ("training", "_modules", "_forward_pre_hooks", "_forward_hooks")
)


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """Facts about a type of modules."""

    may_draw: bool
    skippable: bool
    """Whether its modules need no check in eval mode with grad mode off; torch's dropout draws nothing then."""
    is_batch_norm: bool
    is_graph: bool
    is_cacheable: bool
    """Whether `training` is a plain attribute of its modules, so that a signature shows each change."""


@dataclass(slots=True, eq=False)
class CallCount:
    """How often equal calls occurred."""

    count: int = 0


@dataclass(slots=True, eq=False)
class TreeInfo:
    """Facts about a module and its submodules.

    It keeps none of them alive: sets hold their `id`, lists their index in `modules.all_modules()`.
    """

    module_ids: frozenset[int]
    may_draw: frozenset[int]
    """Modules that may draw random numbers, in their code or in a hook."""
    skippable: frozenset[int]
    """Modules that need no check in eval mode with grad mode off."""
    batch_norms: list[int]
    opaque: list[int]
    """Modules whose submodules run unobserved, because they are compiled into one."""
    graphs: list[int]
    training: frozenset[int]
    """Modules in training mode."""
    training_observations: dict[int, Observation] = field(default_factory=dict)
    """The observations about modules in training mode, valid while `observations_key` is equal."""
    observations_key: object = None
    cause_searched: set[int] = field(default_factory=set)
    """Modules in training mode whose calling line was searched already."""
    settled: frozenset[int] = frozenset()
    """Modules in training mode that, once autograd is known to record, are only checked for random draws."""
    last_observations: tuple[Observation, ...] = ()
    """The modules in training mode that the last forward reported."""
    grad_reason: tuple[list[bool], str] | None = None
    """`requires_grad` of each parameter, and the phrase that describes it in a message."""
    last_call: tuple[object, tuple[object, ...], CallCount] | None = None
    """The last forward in which a check found something: the dict that counts it, its content and its count."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedTree:
    """The facts about a module tree that has run before, and what they depend on."""

    parts: list[weakref.ref[nn.Module]]
    signature: list[object]
    tree: TreeInfo

    def valid_parts(self) -> list[nn.Module] | None:
        """Return the modules if the cached facts still hold, else None."""
        parts = [part for ref in self.parts if (part := ref()) is not None]
        return parts if len(parts) == len(self.parts) and _signature(parts) == self.signature else None


class TreeCache:
    """The facts about the module trees that ran in a window."""

    def __init__(self) -> None:
        self._types: dict[type[nn.Module], TypeInfo] = {}
        self._trees: dict[int, CachedTree] = {}

    def look_up(self, module: nn.Module) -> tuple[list[nn.Module], TreeInfo]:
        """Return a module with its submodules, as `modules.all_modules()` lists them, and the facts about them."""
        cached = self._trees.get(id(module))
        if cached is not None and cached.parts[0]() is module:
            parts = cached.valid_parts()
            if parts is not None:
                return parts, cached.tree
        parts = modules.all_modules(module)
        new_types = set(map(type, parts)).difference(self._types)
        if new_types:
            forward_code.forget_replaced_forwards(new_types)
            self._types.update((cls, _type_info(cls)) for cls in new_types)
        tree = self._inspect(parts)
        if len(self._trees) > _MAX_TREES:
            self._trees.clear()
        signature = _signature(parts) if all(self._types[type(part)].is_cacheable for part in parts) else None
        children = (child for part in parts for child in part._modules.values() if child is not None)
        # A child that is missing in the list is not initialized yet; the signature would not show when it is.
        if signature is not None and tree.module_ids.issuperset(map(id, children)):
            self._trees[id(module)] = CachedTree(list(map(weakref.ref, parts)), signature, tree)
        return parts, tree

    def _inspect(self, parts: list[nn.Module]) -> TreeInfo:
        infos = [self._types[type(part)] for part in parts]
        hooked = {id(part) for part in parts if part._forward_pre_hooks or part._forward_hooks}
        own_forward = {id(part) for part in parts if "forward" in vars(part)}
        may_draw = frozenset(
            id(part)
            for part, info in zip(parts, infos, strict=True)
            if id(part) in hooked
            or (forward_code.module_traits(part).may_draw if id(part) in own_forward else info.may_draw)
        )
        unskippable = {
            id(part) for part, info in zip(parts, infos, strict=True) if not (info.skippable and info.is_cacheable)
        }
        module_ids = frozenset(map(id, parts))
        return TreeInfo(
            module_ids=module_ids,
            may_draw=may_draw,
            skippable=module_ids - (hooked | own_forward | unskippable),
            batch_norms=[i for i, info in enumerate(infos) if info.is_batch_norm],
            opaque=[i for i, part in enumerate(parts) if modules.is_opaque(part)],
            graphs=[i for i, info in enumerate(infos) if info.is_graph],
            training=frozenset(id(part) for part in parts if modules.training_flag(part)),
        )


def _signature(parts: list[nn.Module]) -> list[object] | None:
    """Return what the facts about these modules depend on, or None if a module does not store it the way torch does.

    It is built attribute by attribute with `map`, several times as fast as module by module: every forward needs it.
    """
    dicts = list(map(_DICT, parts))
    try:
        children = list(map(_CHILDREN, dicts))
        return [
            *map(type, parts),
            *map(_TRAINING, dicts),
            *map(len, children),
            *map(id, chain.from_iterable(map(dict.values, filter(None, children)))),
            *map(bool, map(_PRE_HOOKS, dicts)),
            *map(bool, map(_HOOKS, dicts)),
            *map(is_not, map(_COMPILED, parts), repeat(None)),
            *map(contains, dicts, repeat("forward")),
        ]
    except (KeyError, TypeError):
        return None


def _type_info(cls: type[nn.Module]) -> TypeInfo:
    may_draw = forward_code.type_traits(cls).may_draw
    is_graph = issubclass(cls, GRAPH_TYPES)
    return TypeInfo(
        may_draw=may_draw,
        skippable=not may_draw or modules.python_module(cls) == _DropoutNd.__module__,
        is_batch_norm=issubclass(cls, _BatchNorm),
        is_graph=is_graph,
        is_cacheable=not is_graph and not hasattr(cls, "training"),
    )
