"""A model of which torch makes a graph while it is in training mode -> ForwardCall: the graph keeps that.

`torch.jit.trace` is seen as it takes the model; `torch.export.export`, which `torch.onnx.export` calls, as it hands out
the program: so it does not matter by which name the user calls it, and a graph that was never made is not told.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch.jit._trace
from torch import nn
from torch.export import ExportedProgram, export
from torch.jit import ScriptModule, trace_module

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.beside.switches import Switches
from pytest_evalmode.observe.failures import Failures
from pytest_evalmode.observe.models import modes
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source import callers, graphs
from pytest_evalmode.observe.source.sites import Sites
from pytest_evalmode.observe.wrapped import Wrapped
from pytest_evalmode.trace import Finding, ForwardCall, Part


class Exports:
    """Observes the exports of a window."""

    def __init__(self, watch: Watch, sites: Sites, switches: Switches) -> None:
        self.failures = Failures()
        self._watch = watch
        self._sites = sites
        self._switches = switches
        self._calls: dict[ForwardCall, None] = {}

    def take(self) -> tuple[ForwardCall, ...]:
        taken, self._calls = tuple(self._calls), {}
        return taken

    def note(self, module: nn.Module, frame: FrameType | None) -> None:
        """Torch makes a graph of a model, for who stands in a frame."""
        try:
            if isinstance(module, ScriptModule):
                return
            parts = modules.walk(module)
            excused = {id(p) for _, part in parts if graphs.is_exported(part) for p in modules.tree(part)}
            ran = self._part(module)
            training = tuple(
                Finding(_inner(ran, path, part), since=self._switches.line(part))
                for path, part in parts
                if modules.mode(part) and id(part) not in excused and modes.is_sensitive(part)
            )
            if training:
                at, whole = self._sites.caller(frame), bool(modules.mode(module))
                call = ForwardCall(ran, at, len(parts), exported=True, training=training, all_training=whole)
                self._calls[call] = None
        except Exception as error:
            self.failures.append(error)

    def _part(self, module: nn.Module) -> Part:
        found = self._watch.find(modules.unwrapped(module))
        name, path = (found[0].name, found[1]) if found else (self._watch.name_of(module), "")
        return Part(name, path, modules.type_name(module))


def _inner(whole: Part, path: str, module: nn.Module) -> Part:
    """A part of a model that changes with its mode."""
    return Part(whole.model, ".".join(filter(None, (whole.path, path))), modules.type_name(module), sensitive=True)


programs: Wrapped[Exports] = Wrapped("__init__", ExportedProgram)
traces: Wrapped[Exports] = Wrapped("make_module", torch.jit._trace)


@programs.by
def _observed(self: ExportedProgram, *args: Any, **kwargs: Any) -> None:
    programs.original(self, *args, **kwargs)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not export.__code__:
        frame = frame.f_back
    if frame is not None:
        for observer in programs.observers:
            observer.note(callers.running(frame), frame.f_back)


@traces.by
def _observed_trace(mod: nn.Module, *args: Any, **kwargs: Any) -> Any:
    frame = sys._getframe(1)
    if frame.f_code is trace_module.__code__:  # else it is a part of the model
        for observer in traces.observers:
            observer.note(mod, frame.f_back)
    return traces.original(mod, *args, **kwargs)
