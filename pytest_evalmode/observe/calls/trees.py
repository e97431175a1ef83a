"""A tree of modules, as a forward finds it -> what is the same for every forward of it.

The same modules of the same types with the same flags and hooks need not be looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.source import code
from pytest_evalmode.trace import Finding

GRAPHS = (torch.jit.ScriptModule, torch.fx.GraphModule)

_MOST_TREES = 256
_numbers = count()


@dataclass(frozen=True, slots=True)
class Kind:
    """What all modules of a type have in common."""

    may_draw: bool
    quiet: bool
    """Whether there is nothing to see of it in eval mode (torch's own dropout is then off) without grad mode."""
    is_norm: bool
    is_graph: bool
    lasting: bool
    """Whether what its modules say of themselves lies in their attributes, where a change is seen."""


@dataclass(slots=True, eq=False)
class Tree:
    """A module and all beneath it, in the order of the walk.  It holds none: each goes by its `id` or its place."""

    known: frozenset[int]
    drawing: frozenset[int]
    """Those that may draw random numbers, by their code or by a hook."""
    quiet: frozenset[int]
    """Those of which, in eval mode and with grad mode off, there is nothing to see."""
    norms: list[int]
    opaque: list[int]
    graphs: list[int]
    training: list[int]
    told: dict[int, Finding] = field(default_factory=dict)
    """What was found of those in training mode, while names and switches were what they are `told_at`."""
    told_at: object = None
    asked: set[int] = field(default_factory=set)
    """Those of them whose cause was looked for."""
    settled: frozenset[int] = frozenset()
    """Those of which that is all: there is nothing to see of them, once autograd is known to record."""
    findings: tuple[Finding, ...] = ()
    recording: tuple[list[bool], str] | None = None
    """Which of its parameters require grad, and how that is told."""


class Trees:
    """The trees that ran in a window."""

    def __init__(self) -> None:
        self._kinds: dict[type[nn.Module], Kind] = {}
        self._known: dict[int, tuple[list[object], Tree]] = {}

    def of(self, parts: list[nn.Module]) -> Tree:
        """What is to be known of a module and all beneath it."""
        unknown = set(map(type, parts)).difference(self._kinds)
        if unknown:
            code.forget_replaced(unknown)
            self._kinds.update((kind, _kind(kind)) for kind in unknown)
        signature = self._signature(parts)
        last = self._known.get(id(parts[0]))
        if last is not None and last[0] == signature:
            return last[1]
        tree = self._look(parts)
        if len(self._known) > _MOST_TREES:
            self._known.clear()
        self._known[id(parts[0])] = signature, tree
        return tree

    def _signature(self, parts: list[nn.Module]) -> list[object]:
        kinds = self._kinds
        found: list[object] = []
        for part in parts:
            kind = type(part)
            state = part.__dict__
            if not kinds[kind].lasting:
                found.append(next(_numbers))  # never the same again
            found += (
                id(part),
                kind,
                state.get("training"),
                bool(part._forward_pre_hooks),
                bool(part._forward_hooks),
                "forward" in state,
                part._compiled_call_impl is None,
            )
        return found

    def _look(self, parts: list[nn.Module]) -> Tree:
        kinds = [self._kinds[type(part)] for part in parts]
        hooked = {id(part) for part in parts if part._forward_pre_hooks or part._forward_hooks}
        own = {id(part) for part in parts if "forward" in vars(part)}
        drawing = frozenset(
            id(part)
            for part, kind in zip(parts, kinds, strict=True)
            if id(part) in hooked or (code.traits(part).may_draw if id(part) in own else kind.may_draw)
        )
        loud = hooked | own | {id(part) for part, kind in zip(parts, kinds, strict=True) if not kind.quiet}
        known = frozenset(map(id, parts))
        return Tree(
            known=known,
            drawing=drawing,
            quiet=known - loud,
            norms=[i for i, kind in enumerate(kinds) if kind.is_norm],
            opaque=[i for i, part in enumerate(parts) if modules.is_opaque(part)],
            graphs=[i for i, kind in enumerate(kinds) if kind.is_graph],
            training=[i for i, part in enumerate(parts) if modules.mode(part)],
        )


def _kind(kind: type[nn.Module]) -> Kind:
    may_draw = code.traits_of(kind).may_draw
    is_graph = issubclass(kind, GRAPHS)
    return Kind(
        may_draw=may_draw,
        quiet=not may_draw or modules.home(kind) == _DropoutNd.__module__,
        is_norm=issubclass(kind, _BatchNorm),
        is_graph=is_graph,
        lasting=not is_graph and not hasattr(kind, "training"),
    )
