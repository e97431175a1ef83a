"""A tree of modules, as a forward finds it -> what is the same for every forward of it.

The same modules of the same types with the same flags and hooks need not be looked at again.
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

_MOST_TREES = 256

_STATE, _COMPILED = attrgetter("__dict__"), attrgetter("_compiled_call_impl")
_TRAINING, _CHILDREN, _HOOKS_BEFORE, _HOOKS_BEHIND = map(
    itemgetter, ("training", "_modules", "_forward_pre_hooks", "_forward_hooks")
)


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """What all modules of a type have in common."""

    may_draw: bool
    quiet: bool
    """Whether there is nothing to see of it in eval mode (torch's own dropout is then off) without grad mode."""
    is_norm: bool
    is_graph: bool
    lasting: bool
    """Whether what its modules say of themselves lies in their attributes, where a change is seen."""


@dataclass(slots=True, eq=False)
class CallCount:
    """How often a call was seen."""

    count: int = 0


@dataclass(slots=True, eq=False)
class TreeInfo:
    """A module and all beneath it, in the order of the walk.  It holds none: each goes by its `id` or its place."""

    module_ids: frozenset[int]
    may_draw: frozenset[int]
    """Those that may draw random numbers, by their code or by a hook."""
    skippable: frozenset[int]
    """Those of which, in eval mode and with grad mode off, there is nothing to see."""
    batch_norms: list[int]
    opaque: list[int]
    graphs: list[int]
    training: frozenset[int]
    training_findings: dict[int, Observation] = field(default_factory=dict)
    """What was found of those in training mode, while names and switches were what they are `told_at`."""
    findings_key: object = None
    cause_searched: set[int] = field(default_factory=set)
    """Those of them whose cause was looked for."""
    settled: frozenset[int] = frozenset()
    """Those of which that is all: but for draws there is nothing to see of them, once autograd is known to record."""
    last_findings: tuple[Observation, ...] = ()
    grad_reason: tuple[list[bool], str] | None = None
    """Which of its parameters require grad, and how that is told."""
    last_call: tuple[object, tuple[object, ...], CallCount] | None = None
    """The last forward that had something to say: among which it is counted, what it said, how often."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedTree:
    """A tree that has run before."""

    parts: list[weakref.ref[nn.Module]]
    signature: list[object]
    tree: TreeInfo

    def still(self) -> list[nn.Module] | None:
        """The same parts, where nothing has changed of which a tree tells."""
        parts = [part for ref in self.parts if (part := ref()) is not None]
        return parts if len(parts) == len(self.parts) and _signature(parts) == self.signature else None


class TreeCache:
    """The trees that ran in a window."""

    def __init__(self) -> None:
        self._kinds: dict[type[nn.Module], TypeInfo] = {}
        self._known: dict[int, CachedTree] = {}

    def look_up(self, module: nn.Module) -> tuple[list[nn.Module], TreeInfo]:
        """A module and all beneath it, as `modules.tree` walks it, and what is to be known of them."""
        known = self._known.get(id(module))
        if known is not None and known.parts[0]() is module:
            parts = known.still()
            if parts is not None:
                return parts, known.tree
        parts = modules.all_modules(module)
        unknown = set(map(type, parts)).difference(self._kinds)
        if unknown:
            forward_code.forget_replaced_forwards(unknown)
            self._kinds.update((kind, _kind(kind)) for kind in unknown)
        tree = self._look(parts)
        if len(self._known) > _MOST_TREES:
            self._known.clear()
        signature = _signature(parts) if all(self._kinds[type(part)].lasting for part in parts) else None
        children = (child for part in parts for child in part._modules.values() if child is not None)
        if signature is not None and tree.module_ids.issuperset(map(id, children)):  # not where one has yet to be built
            self._known[id(module)] = CachedTree(list(map(weakref.ref, parts)), signature, tree)
        return parts, tree

    def _look(self, parts: list[nn.Module]) -> TreeInfo:
        kinds = [self._kinds[type(part)] for part in parts]
        hooked = {id(part) for part in parts if part._forward_pre_hooks or part._forward_hooks}
        own = {id(part) for part in parts if "forward" in vars(part)}
        drawing = frozenset(
            id(part)
            for part, kind in zip(parts, kinds, strict=True)
            if id(part) in hooked or (forward_code.module_traits(part).may_draw if id(part) in own else kind.may_draw)
        )
        loud = (
            hooked
            | own
            | {id(part) for part, kind in zip(parts, kinds, strict=True) if not (kind.quiet and kind.lasting)}
        )
        known = frozenset(map(id, parts))
        return TreeInfo(
            module_ids=known,
            may_draw=drawing,
            skippable=known - loud,
            batch_norms=[i for i, kind in enumerate(kinds) if kind.is_norm],
            opaque=[i for i, part in enumerate(parts) if modules.is_opaque(part)],
            graphs=[i for i, kind in enumerate(kinds) if kind.is_graph],
            training=frozenset(id(part) for part in parts if modules.training_flag(part)),
        )


def _signature(parts: list[nn.Module]) -> list[object] | None:
    """In what a tree of these modules would differ from another: column by column, which is the quickest way.

    None where one of them keeps this otherwise than torch does.
    """
    states = list(map(_STATE, parts))
    try:
        children = list(map(_CHILDREN, states))
        return [
            *map(type, parts),
            *map(_TRAINING, states),
            *map(len, children),
            *map(id, chain.from_iterable(map(dict.values, filter(None, children)))),
            *map(bool, map(_HOOKS_BEFORE, states)),
            *map(bool, map(_HOOKS_BEHIND, states)),
            *map(is_not, map(_COMPILED, parts), repeat(None)),
            *map(contains, states, repeat("forward")),
        ]
    except (KeyError, TypeError):
        return None


def _kind(kind: type[nn.Module]) -> TypeInfo:
    may_draw = forward_code.type_traits(kind).may_draw
    is_graph = issubclass(kind, GRAPH_TYPES)
    return TypeInfo(
        may_draw=may_draw,
        quiet=not may_draw or modules.python_module(kind) == _DropoutNd.__module__,
        is_norm=issubclass(kind, _BatchNorm),
        is_graph=is_graph,
        lasting=not is_graph and not hasattr(kind, "training"),
    )
