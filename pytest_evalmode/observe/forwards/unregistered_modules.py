"""Unregistered modules: they run inside a model without being its submodules, and are watched, too."""

from __future__ import annotations

from types import FrameType
from typing import NamedTuple

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.context import ForwardContext, LateModule
from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.source import callers
from pytest_evalmode.trace import Site

UNREGISTERED_REASON = "it is not a registered submodule, so eval() does not reach it"


class Arrival(NamedTuple):
    """What the checks learn about a module that was not a submodule when the forward started."""

    parts: list[nn.Module]
    """The module and its submodules."""
    cause: Site | None = None
    """The user's line that ran it, if it is unregistered."""
    why: str = ""
    """Why `eval()` does not reach it; empty if it is registered by now."""
    is_model: bool = False
    """Whether it is unregistered and counts as a model that ran."""


def add_late_module(forward: ForwardContext, module: nn.Module, frame: FrameType) -> Arrival:
    """Add a module that starts in a frame to `forward.late_modules`, and watch it if it is unregistered."""
    late, user_lines = forward.late_modules, forward.window.user_lines
    now = modules.all_modules(forward.root)
    late.update((id(part), LateModule(part)) for part in now if not forward.includes(id(part)))
    parts = modules.all_modules(module)
    if forward.includes(id(module)):
        return Arrival(parts)
    caller = callers.module_of_frame(callers.enclosing_forward_frame(frame))
    parent = forward.module_info(caller)
    step = discovery.attribute_of(caller, module) or f"<{modules.type_name(module)}>"
    is_model = False
    if any(map(modules.own_tensors, parts)):
        model = forward.window.watch.add(module, f"{parent.name}.{step}")
        model.last_call = user_lines.find_caller(frame.f_back).line or model.last_call
        model.forwards += model.is_model
        is_model = model.is_model
    for path, part in modules.walk(module):
        late[id(part)] = LateModule(part, ".".join(filter(None, (parent.path, step, path))), is_model)
    return Arrival(parts, user_lines.find_line(frame.f_back, forward.frame), UNREGISTERED_REASON, is_model)
