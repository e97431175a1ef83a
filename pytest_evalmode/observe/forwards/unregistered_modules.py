"""A module that runs inside a model without being part of it: its state and modes are watched all the same."""

from __future__ import annotations

from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import CheckContext
from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.source import callers

UNREGISTERED_REASON = "it is no submodule: eval() cannot reach it"


def note_unregistered_module(
    scene: CheckContext, outermost: ForwardContext, module: nn.Module, frame: FrameType
) -> bool:
    """Note a module that was not there when the forward began; whether a model runs as a guest, which counts."""
    now = frozenset(map(id, modules.all_modules(outermost.root)))
    outermost.late_submodules |= now - outermost.module_ids
    outermost.module_ids |= now
    parts = modules.all_modules(module)
    if id(module) in outermost.module_ids:  # it has become a part since the forward began
        _tell(outermost, parts)
        return False
    outermost.module_ids = outermost.module_ids.union(map(id, parts))
    outermost.keep_alive += parts
    caller = callers.module_of_frame(callers.enclosing_forward_frame(frame))
    where = outermost.part(caller)
    step = discovery.attribute_of(caller, module) or f"<{modules.type_name(module)}>"
    for path, part in modules.walk(module):
        outermost.unregistered_paths[id(part)] = ".".join(filter(None, (where.path, step, path)))
    ran = any(map(modules.has_own_tensors, parts)) and _watch(scene, outermost, module, f"{where.name}.{step}", frame)
    for question in outermost.checks:
        question.add_modules(parts, scene.sites.find_line_inside(frame.f_back, outermost.frame), UNREGISTERED_REASON)
    return ran


def _tell(outermost: ForwardContext, parts: list[nn.Module]) -> None:
    for question in outermost.checks:
        question.add_modules(parts, None, "")


def _watch(scene: CheckContext, outermost: ForwardContext, module: nn.Module, name: str, frame: FrameType) -> bool:
    """Watch a guest that holds tensors; whether it is a model, in what may be none by itself."""
    guest = scene.watch.add(module, name)
    asked = scene.sites.find_caller(frame.f_back)
    caller = asked.test_frame or asked.frame
    if caller is not None:
        guest.last_call = (caller.f_code, caller.f_lineno)
    guest.forwards += guest.is_model
    outermost.has_unregistered_model |= guest.is_model
    return guest.is_model
