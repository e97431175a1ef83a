"""What all questions have in common: the moments at which they can be asked."""

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
    """What the questions of a window look at, beside the forward."""

    watch: Watch
    sites: UserLines
    mode_changes: ModeChanges
    strict: bool
    referenced: dict[tuple[tuple[CodeType, int] | None, str, int], bool] = field(default_factory=dict)
    """Whether somebody else holds an argument, by the line that handed it over: that takes a while to find out."""


class ForwardCheck:
    """Something that is asked of one outermost forward.  It overrides the verbs that it needs."""

    def __init__(self, context: CheckContext, forward: ForwardContext) -> None:
        self.context = context
        self.forward = forward

    def begin(self) -> None:
        """The forward begins."""

    def add_modules(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        """A module runs, with what is beneath it, that was no part of the whole when that began."""

    def enter(self, part: nn.Module, frame: FrameType) -> None:
        """A part of which there is something to see begins in a frame; the whole itself does, too."""

    def leave(self, part: nn.Module, output: object, frame: FrameType) -> None:
        """It ends; `output` is RAISED if by an exception."""

    def interrupt(self, frame: FrameType) -> None:
        """A model that was handed in begins to run; it is an outermost forward of its own."""

    def resume(self) -> None:
        """It has ended."""

    def end(self, output: object) -> Mapping[str, object]:
        """The forward ends: what was found, by the names of `ForwardCall`'s fields."""
        return {}
