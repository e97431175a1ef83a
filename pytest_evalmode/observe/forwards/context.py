"""The state of an outermost forward while it runs."""

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
"""The output of a forward that raised an exception."""


@dataclass(slots=True, eq=False)
class ForwardContext:
    """An outermost forward in progress, with the state that its checks share.

    Sets of modules hold their `id`.
    """

    watch: Watch
    model: TrackedModel
    owner: nn.Module
    """The module whose method was called: `model` for `model(x)` and for `model.encode(x)`."""
    root: nn.Module
    """The module whose `__call__` ran: the owner itself, or the part of it that `encode` called."""
    frame: FrameType
    """The frame of the patched `__call__` of `root`."""
    call_line: tuple[CodeType, int] | None
    """Code object and number of the user's line that called the owner: the line in the test's file if there is one."""
    innermost_line: tuple[CodeType, int] | None
    """The innermost line outside the model, if that is not `call_line`."""
    cause: Site | None
    """The line in the owner's method that called `root`, if they differ."""
    parts: list[nn.Module]
    """`root` and its submodules, when the forward started."""
    tree: TreeInfo
    inputs: tuple[Any, Any]
    """The arguments and the keyword arguments of `root`."""
    grad_enabled: bool
    """Whether grad mode was on when the forward started."""
    module_ids: frozenset[int]
    """All modules that are known to run in this forward, unregistered ones included."""
    skippable: frozenset[int]
    """Modules that need no check while in eval mode with grad mode off; empty if grad mode was on at the start."""
    settled: frozenset[int] = frozenset()
    """Modules in training mode that, once autograd is known to record, are only checked for random draws."""
    autograd_recorded: bool = False
    """Whether autograd is known to record."""
    late_submodules: frozenset[int] = frozenset()
    """Submodules registered since the forward started, perhaps only while it runs (by `parametrize`, for example)."""
    lazy: frozenset[int] = frozenset()
    """Modules that initialize their parameters in this forward, at random."""
    enclosing: ForwardContext | None = None
    """The forward to which this model was passed as an argument."""
    unregistered_paths: dict[int, str] = field(default_factory=dict)
    """The paths under which unregistered modules are reported."""
    keep_alive: list[nn.Module] = field(default_factory=list)
    """The unregistered modules: if one were freed, its `id` could be reused by another."""
    has_unregistered_model: bool = False
    """Whether an unregistered module has parameters."""
    training: dict[int, Observation] = field(default_factory=dict)
    """Modules in training mode that depend on the mode or hold parameters; they explain what other checks see."""
    checks: list[Any] = field(default_factory=list)
    """One instance of each `ForwardCheck`, in order."""

    @property
    def is_model(self) -> bool:
        return self.model.is_model or self.has_unregistered_model

    def module_info(self, module: nn.Module) -> ModuleInfo:
        """Return the name and type under which a module is reported."""
        info = self.watch.registry.find_part(module)
        if info is None:
            type_name = modules.type_name(module)
            path = self.unregistered_paths.get(id(module), f"<{type_name}>")
            return ModuleInfo(self.model.name, path, type_name)
        return info
