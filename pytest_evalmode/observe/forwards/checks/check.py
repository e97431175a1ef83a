"""Base class of the checks of a forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CodeType, FrameType

from torch import nn

from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Site


@dataclass(frozen=True, slots=True, eq=False)
class CheckContext:
    """Objects that all checks of one window share."""

    watch: Watch
    user_lines: UserLines
    mode_changes: ModeChanges
    strict: bool
    referenced: dict[tuple[tuple[CodeType, int] | None, str, int], bool] = field(default_factory=dict)
    """Cache of whether an argument is still referenced after the call, by line, argument and reference count."""


class ForwardCheck:
    """Base class of a check, which detects one kind of fault in an outermost forward.

    A check is created for each forward and overrides the methods that it needs.  Frames are those of the patched
    `nn.Module.__call__`.
    """

    def __init__(self, context: CheckContext, forward: ForwardContext) -> None:
        self.context = context
        self.forward = forward

    def begin(self) -> None:
        """Called when the forward starts."""

    def add_modules(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        """Called when a module runs that was not a submodule when the forward started.

        Args:
            parts: The module and its submodules.
            cause: The user's line that ran the module, if it is unregistered.
            why: Why `eval()` does not reach the module; empty if it is registered by now.
        """

    def enter(self, module: nn.Module, frame: FrameType) -> None:
        """Called when a module that is not skippable starts to run, the root included."""

    def leave(self, module: nn.Module, output: object, frame: FrameType) -> None:
        """Called when that module ends; `output` is `RAISED` if it raised an exception."""

    def interrupt(self, frame: FrameType) -> None:
        """Called when a model that was passed as an argument starts to run, in a forward context of its own."""

    def resume(self) -> None:
        """Called when that model ends."""

    def end(self, output: object) -> Mapping[str, object]:
        """Called when the forward ends.

        Returns:
            What the check found, by field name of `ForwardCall`.
        """
        return {}
