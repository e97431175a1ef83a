"""Base class of the checks of a forward."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import FrameType

from torch import nn

from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.forwards.unregistered_modules import Arrival


class ForwardCheck:
    """Base class of a check, which detects one kind of fault in an outermost forward.

    A check is created for each forward and overrides the methods that it needs.  It writes to nothing that others read:
    what it finds it returns.  Frames are those of the patched `nn.Module.__call__`.
    """

    unskippable: Collection[int] = ()
    """Modules, by `id`, that the check needs to see although they are skippable; known when it has begun."""

    def __init__(self, forward: ForwardContext) -> None:
        self.forward = forward
        self.window = forward.window

    def begin(self) -> None:
        """Called when the forward starts."""

    def add_modules(self, arrival: Arrival) -> None:
        """Called when a module runs that was not a submodule when the forward started."""

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
