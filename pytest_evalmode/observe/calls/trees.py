"""A tree of modules, as a forward finds it -> what is the same for every forward of it.

The same modules of the same types with the same flags and hooks need not be looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.source import code
from pytest_evalmode.trace import Finding

GRAPHS = (torch.jit.ScriptModule, torch.fx.GraphModule)

_MOST_TREES = 256


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
class Counted:
    """How often a call was seen."""

    count: int = 0


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
    training: frozenset[int]
    told: dict[int, Finding] = field(default_factory=dict)
    """What was found of those in training mode, while names and switches were what they are `told_at`."""
    told_at: object = None
    asked: set[int] = field(default_factory=set)
    """Those of them whose cause was looked for."""
    settled: frozenset[int] = frozenset()
    """Those of which that is all: but for draws there is nothing to see of them, once autograd is known to record."""
    findings: tuple[Finding, ...] = ()
    recording: tuple[list[bool], str] | None = None
    """Which of its parameters require grad, and how that is told."""
    counted: tuple[object, tuple[object, ...], Counted] | None = None
    """The last forward that had something to say: among which it is counted, what it said, how often."""


class Trees:
    """The trees that ran in a window."""

    def __init__(self) -> None:
        self._kinds: dict[type[nn.Module], Kind] = {}
        self._known: dict[int, tuple[list[object], Tree]] = {}

    def of(self, module: nn.Module) -> tuple[list[nn.Module], Tree]:
        """A module and all beneath it, as `modules.tree` walks it, and what is to be known of them."""
        parts, signature = _walked(module)
        last = self._known.get(id(module))
        if last is not None and last[0] == signature:
            return parts, last[1]
        unknown = set(map(type, parts)).difference(self._kinds)
        if unknown:
            code.forget_replaced(unknown)
            self._kinds.update((kind, _kind(kind)) for kind in unknown)
        tree = self._look(parts)
        if len(self._known) > _MOST_TREES:
            self._known.clear()
        if all(self._kinds[type(part)].lasting for part in parts):
            self._known[id(module)] = signature, tree
        return parts, tree

    def _look(self, parts: list[nn.Module]) -> Tree:
        kinds = [self._kinds[type(part)] for part in parts]
        hooked = {id(part) for part in parts if part._forward_pre_hooks or part._forward_hooks}
        own = {id(part) for part in parts if "forward" in vars(part)}
        drawing = frozenset(
            id(part)
            for part, kind in zip(parts, kinds, strict=True)
            if id(part) in hooked or (code.traits(part).may_draw if id(part) in own else kind.may_draw)
        )
        loud = (
            hooked
            | own
            | {id(part) for part, kind in zip(parts, kinds, strict=True) if not (kind.quiet and kind.lasting)}
        )
        known = frozenset(map(id, parts))
        return Tree(
            known=known,
            drawing=drawing,
            quiet=known - loud,
            norms=[i for i, kind in enumerate(kinds) if kind.is_norm],
            opaque=[i for i, part in enumerate(parts) if modules.is_opaque(part)],
            graphs=[i for i, kind in enumerate(kinds) if kind.is_graph],
            training=frozenset(id(part) for part in parts if modules.mode(part)),
        )


def _walked(module: nn.Module) -> tuple[list[nn.Module], list[object]]:
    """A module and all beneath it, and in what this tree would differ from what it was, all in one go."""
    found: dict[int, nn.Module] = {}
    signature: list[object] = []
    waiting = [module]
    while waiting:
        part = waiting.pop()
        key = id(part)
        if key not in found:
            found[key] = part
            state = part.__dict__
            signature += (key, type(part), state.get("training"))
            before, behind, compiled = part._forward_pre_hooks, part._forward_hooks, part._compiled_call_impl
            if before or behind or compiled is not None or "forward" in state:
                signature.append((bool(before), bool(behind), compiled is None, "forward" in state))
            if part._modules:
                waiting += [child for child in part._modules.values() if modules.is_built(child)][::-1]
    return list(found.values()), signature


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
