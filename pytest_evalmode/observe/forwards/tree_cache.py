"""Cache of facts about the modules of a model, which stay the same from forward to forward."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import attrgetter, contains, is_not, itemgetter
from typing import Any

import torch
from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.model_code import forward_code
from pytest_evalmode.observe.private_api import BatchNorm, ScriptModule

GRAPH_TYPES = (ScriptModule, torch.fx.GraphModule)

_MAX_TREES = 256

_DICT, _COMPILED = attrgetter("__dict__"), attrgetter("_compiled_call_impl")
_TRAINING, _CHILDREN, _PRE_HOOKS, _HOOKS = map(
    itemgetter, ("training", "_modules", "_forward_pre_hooks", "_forward_hooks")
)


@dataclass(frozen=True, slots=True, eq=False)
class TreeInfo:
    """Facts about a module and its submodules.

    It keeps none of them alive: sets hold their `id`, lists their index in `modules.all_modules()`.
    """

    module_ids: frozenset[int]
    may_draw: frozenset[int]
    """Modules that may draw random numbers, in their code or in a hook."""
    skippable: frozenset[int]
    """Modules that need no check in eval mode with grad mode off; torch's dropout draws nothing then."""
    batch_norms: list[int]
    opaque: list[int]
    """Modules whose submodules run unobserved, because they are compiled into one."""
    graphs: list[int]
    training: frozenset[int]
    """Modules in training mode."""
    caches: dict[type, Any] = field(default_factory=dict)
    """What a check keeps from forward to forward, by the type of the check: no other reads it."""


class TreeCache:
    """The facts about the module trees that ran in a window."""

    def __init__(self) -> None:
        self._trees: dict[int, tuple[list[weakref.ref[nn.Module]], list[object], TreeInfo]] = {}
        """By the `id` of its root: the modules of a tree, what its facts depend on, and the facts."""

    def look_up(self, module: nn.Module) -> tuple[list[nn.Module], TreeInfo]:
        """Return a module with its submodules, as `modules.all_modules()` lists them, and the facts about them."""
        if id(module) in self._trees:
            refs, signature, tree = self._trees[id(module)]
            parts = [part for ref in refs if (part := ref()) is not None]
            if len(parts) == len(refs) and parts[0] is module and _signature(parts) == signature:
                return parts, tree
        parts = modules.all_modules(module)
        tree = _inspect(parts)
        if len(self._trees) > _MAX_TREES:
            self._trees.clear()
        new_signature = _signature(parts) if all(map(_is_cacheable, set(map(type, parts)))) else None
        children = (child for part in parts for child in part._modules.values() if child is not None)
        # A child that is missing in the list is not initialized yet; the signature would not show when it is.
        if new_signature is not None and tree.module_ids.issuperset(map(id, children)):
            self._trees[id(module)] = list(map(weakref.ref, parts)), new_signature, tree
        return parts, tree


def _is_cacheable(cls: type[nn.Module]) -> bool:
    """Return whether `training` is a plain attribute of a type's modules, so that a signature shows each change."""
    return not issubclass(cls, GRAPH_TYPES) and not hasattr(cls, "training")


def _inspect(parts: list[nn.Module]) -> TreeInfo:
    types = {cls: (forward_code.type_traits(cls).may_draw, _is_cacheable(cls)) for cls in set(map(type, parts))}
    may_draw, skippable = set[int](), set[int]()
    for part in parts:
        draws, is_plain = types[type(part)]
        if part._forward_pre_hooks or part._forward_hooks:
            draws, is_plain = True, False
        elif "forward" in vars(part):
            draws, is_plain = forward_code.module_traits(part).may_draw, False
        if draws:
            may_draw.add(id(part))
        if is_plain and (not draws or modules.python_module(type(part)) == nn.Dropout.__module__):
            skippable.add(id(part))
    return TreeInfo(
        module_ids=frozenset(map(id, parts)),
        may_draw=frozenset(may_draw),
        skippable=frozenset(skippable),
        batch_norms=[i for i, part in enumerate(parts) if isinstance(part, BatchNorm)],
        opaque=[i for i, part in enumerate(parts) if modules.is_opaque(part)],
        graphs=[i for i, part in enumerate(parts) if isinstance(part, GRAPH_TYPES)],
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
    except (AttributeError, KeyError, TypeError):
        return None
