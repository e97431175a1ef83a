"""A module that runs inside a model without being part of it: its state and modes are watched all the same."""

from __future__ import annotations

from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import Scene
from pytest_evalmode.observe.forwards.context import Outermost
from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.source import callers

UNREACHED = "it is no submodule: eval() cannot reach it"


def take_in(scene: Scene, outermost: Outermost, module: nn.Module, frame: FrameType) -> bool:
    """Note a module that was not there when the forward began; whether a model runs as a guest, which counts."""
    now = frozenset(map(id, modules.tree(outermost.ran)))
    outermost.newcomers |= now - outermost.known
    outermost.known |= now
    parts = modules.tree(module)
    if id(module) in outermost.known:  # it has become a part since the forward began
        _tell(outermost, parts)
        return False
    outermost.known = outermost.known.union(map(id, parts))
    outermost.pinned += parts
    caller = callers.running(callers.enclosing(frame))
    where = outermost.part(caller)
    step = discovery.attribute_of(caller, module) or f"<{modules.type_name(module)}>"
    for path, part in modules.walk(module):
        outermost.guests[id(part)] = ".".join(filter(None, (where.path, step, path)))
    ran = any(map(modules.is_stateful, parts)) and _watch(scene, outermost, module, f"{where.name}.{step}", frame)
    for question in outermost.questions:
        question.join(parts, scene.sites.inside(frame.f_back, outermost.frame), UNREACHED)
    return ran


def _tell(outermost: Outermost, parts: list[nn.Module]) -> None:
    for question in outermost.questions:
        question.join(parts, None, "")


def _watch(scene: Scene, outermost: Outermost, module: nn.Module, name: str, frame: FrameType) -> bool:
    """Watch a guest that holds tensors; whether it is a model, in what may be none by itself."""
    guest = scene.watch.add(module, name)
    asked = scene.sites.outside(frame.f_back)
    caller = asked.test or asked.frame
    if caller is not None:
        guest.last = (caller.f_code, caller.f_lineno)
    guest.forwards += guest.is_model
    outermost.hosts_model |= guest.is_model
    return guest.is_model
