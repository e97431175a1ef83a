"""An outermost forward while it runs: who runs, what is to be seen of it, and what more than one question asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.tree_cache import TreeInfo
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.trace import ModuleInfo, Observation, Site

RAISED = object()
"""What came out of a forward that raised."""


@dataclass(slots=True, eq=False)
class ForwardContext:
    """An outermost forward while it runs."""

    watch: Watch
    model: TrackedModel
    owner: nn.Module
    """What was called, by `__call__` or by another method."""
    root: nn.Module
    """What that ran first past its own `__call__`; else the same."""
    frame: FrameType
    call_line: tuple[CodeType, int] | None
    """By which line; of a test, where there is one."""
    innermost_line: tuple[CodeType, int] | None
    """The line that this led to outside the model, where it is another."""
    cause: Site | None
    """The line of the method by which its owner ran it."""
    parts: list[nn.Module]
    tree: TreeInfo
    inputs: tuple[Any, Any]
    grad_enabled: bool
    module_ids: frozenset[int]
    """The modules that are part of it, or run in it, by `id`."""
    skippable: frozenset[int]
    """Those of which, in eval mode and with grad mode off, there is nothing to see; none where that was on."""
    settled: frozenset[int] = frozenset()
    """Those in training mode of which there is nothing to see any more but draws, once it is `recorded`."""
    autograd_recorded: bool = False
    """Whether it is known that autograd records."""
    late_submodules: frozenset[int] = frozenset()
    """Those that have become part of it since it began, for as long as it runs maybe: a parametrization's."""
    lazy: frozenset[int] = frozenset()
    """Those that initialise their parameters in this very forward, at random."""
    enclosing: ForwardContext | None = None
    """The outermost forward in which this model runs without being part of it: it was handed to that."""
    unregistered_paths: dict[int, str] = field(default_factory=dict)
    """The paths of modules that run in it without being part of it."""
    keep_alive: list[nn.Module] = field(default_factory=list)
    """Them and their parts: one that died would leave its `id` to another."""
    has_unregistered_model: bool = False
    """Whether one of them holds parameters."""
    training: dict[int, Observation] = field(default_factory=dict)
    """The modules in training mode that depend on the mode or hold parameters: they explain what else is seen."""
    checks: list[Any] = field(default_factory=list)

    @property
    def is_model(self) -> bool:
        return self.model.is_model or self.has_unregistered_model

    def part(self, module: nn.Module) -> ModuleInfo:
        """A module as it is told."""
        part = self.watch.find_part(module)
        if part is None:
            kind = modules.type_name(module)
            return ModuleInfo(self.model.name, self.unregistered_paths.get(id(module), f"<{kind}>"), kind)
        return part
