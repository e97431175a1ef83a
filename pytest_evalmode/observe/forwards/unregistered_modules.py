"""Unregistered modules: they run inside a model without being its submodules, and are watched, too."""

from __future__ import annotations

from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import CheckContext
from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.source import callers

UNREGISTERED_REASON = "it is not a registered submodule, so eval() does not reach it"


def note_unregistered_module(
    context: CheckContext, forward: ForwardContext, module: nn.Module, frame: FrameType
) -> bool:
    """Report a module that was not a submodule when the forward started to the checks, and watch it if unregistered.

    `frame` is the one in which the module starts.  Return whether it is unregistered and counts as a model that ran.
    """
    now = frozenset(map(id, modules.all_modules(forward.root)))
    forward.late_submodules |= now - forward.module_ids
    forward.module_ids |= now
    parts = modules.all_modules(module)
    if id(module) in forward.module_ids:  # it was registered since the forward started
        for check in forward.checks:
            check.add_modules(parts, None, "")
        return False
    forward.module_ids = forward.module_ids.union(map(id, parts))
    forward.keep_alive += parts
    caller = callers.module_of_frame(callers.enclosing_forward_frame(frame))
    parent = forward.module_info(caller)
    step = discovery.attribute_of(caller, module) or f"<{modules.type_name(module)}>"
    for path, part in modules.walk(module):
        forward.unregistered_paths[id(part)] = ".".join(filter(None, (parent.path, step, path)))
    has_tensors = any(map(modules.has_own_tensors, parts))
    is_model = has_tensors and _watch(context, forward, module, f"{parent.name}.{step}", frame)
    cause = context.user_lines.find_line_inside(frame.f_back, forward.frame)
    for check in forward.checks:
        check.add_modules(parts, cause, UNREGISTERED_REASON)
    return is_model


def _watch(context: CheckContext, forward: ForwardContext, module: nn.Module, name: str, frame: FrameType) -> bool:
    """Watch an unregistered module that holds tensors, and return whether it is a model."""
    model = context.watch.add(module, name)
    caller = context.user_lines.find_caller(frame.f_back)
    call_frame = caller.test_frame or caller.frame
    if call_frame is not None:
        model.last_call = (call_frame.f_code, call_frame.f_lineno)
    model.forwards += model.is_model
    forward.has_unregistered_model |= model.is_model
    return model.is_model
