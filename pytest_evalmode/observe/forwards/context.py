"""What the checks of a forward know: the window, the forward, and the modules that run in it."""

from __future__ import annotations

from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.forwards.tree_cache import TreeInfo
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ModuleInfo, Observation, Site

RAISED = object()
"""The output of a forward that raised an exception."""


class CheckContext(NamedTuple):
    """What the checks of one window share, apart from the forward."""

    watch: Watch
    user_lines: UserLines
    mode_changes: ModeChanges
    strict: bool


class LateModule(NamedTuple):
    """A module that runs in a forward without having been a submodule when it started."""

    module: nn.Module
    """Keeps it alive: if it were freed, its `id` could be reused by another."""
    path: str | None = None
    """The path under which it is reported; None if it was registered since (by `parametrize`, for example)."""
    in_model: bool = False
    """Whether it belongs to an unregistered module that has parameters."""


class ForwardContext(NamedTuple):
    """An outermost forward in progress.

    Its fields are facts from the start of the forward, but for `late_modules`, which the observer adds, and `training`,
    which `TrainingModeCheck` writes.
    """

    window: CheckContext
    model: TrackedModel
    owner: nn.Module
    """The module whose method was called: `model` for `model(x)` and for `model.encode(x)`."""
    root: nn.Module
    """The module whose `__call__` ran: the owner itself, or the part of it that `encode` called."""
    frame: FrameType
    """The frame of the patched `__call__` of `root`."""
    owner_frame: FrameType
    """The frame of the owner's method that ran `root`; `frame` if there is none."""
    call_line: tuple[CodeType, int] | None
    """Code object and number of the user's line that called the owner: the line in the test's file if there is one."""
    innermost_line: tuple[CodeType, int] | None
    """The innermost line outside the model, if that is not `call_line`."""
    cause: Site | None
    """The line in the owner's method that called `root`, if they differ."""
    parts: list[nn.Module]
    """`root` and its submodules."""
    tree: TreeInfo
    inputs: tuple[Any, Any]
    """The arguments and the keyword arguments of `root`."""
    grad_enabled: bool
    """Whether grad mode was on."""
    lazy: frozenset[int]
    """Modules that initialize their parameters in this forward, at random."""
    late_modules: dict[int, LateModule]
    grad_flags: list[bool]
    """Whether each parameter requires grad; filled by the check that needs it first."""
    training: dict[int, Observation]
    """Modules in training mode that depend on the mode or train parameters; they explain what other checks see."""

    @property
    def is_model(self) -> bool:
        return self.model.is_model or any(late.in_model for late in self.late_modules.values())

    def includes(self, key: int) -> bool:
        """Return whether a module, given by its `id`, is known to run in this forward."""
        return key in self.tree.module_ids or key in self.late_modules

    def module_info(self, module: nn.Module) -> ModuleInfo:
        """Return the name and type under which a module is reported."""
        info = self.window.watch.registry.find_part(module)
        if info is None:
            type_name, late = modules.type_name(module), self.late_modules.get(id(module))
            return ModuleInfo(self.model.name, (late and late.path) or f"<{type_name}>", type_name)
        return info
