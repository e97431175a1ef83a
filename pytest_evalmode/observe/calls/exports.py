"""A model of which torch makes a graph while it is in training mode -> ForwardCall: the graph keeps that.

`torch.jit.trace` is seen as it takes the model; `torch.export.export`, which `torch.onnx.export` calls, as it hands out
the program; the older way of `torch.onnx.export`, as it has traced.  So it does not matter by which name the user calls
it, and a graph that was never made is not told.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import torch.jit._trace
from torch import nn
from torch.export import ExportedProgram, export
from torch.jit import ScriptModule, trace_module
from torch.jit._trace import ONNXTracedModule

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source import callers, model_graphs
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ForwardCall, ModuleInfo, Observation


class ModelExports:
    """Observes the exports of a window."""

    def __init__(self, watch: Watch, sites: UserLines, switches: ModeChanges) -> None:
        self.failures = ObserverErrors()
        self._watch = watch
        self._sites = sites
        self._switches = switches
        self._calls: dict[ForwardCall, list[nn.Module]] = {}
        """With the graphs that were made: few live to see this, as each is a fault."""
        self._programs: weakref.WeakKeyDictionary[ExportedProgram, ForwardCall] = weakref.WeakKeyDictionary()

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        taken, self._calls = self._calls, {}
        return tuple(replace(call, graphs=frozenset(self._names(graphs))) for call, graphs in taken.items())

    def note(
        self, module: nn.Module, frame: FrameType | None, program: ExportedProgram | None = None
    ) -> ForwardCall | None:
        """Torch makes a graph of a model, for who stands in a frame."""
        try:
            if isinstance(module, ScriptModule):
                return None
            parts = modules.walk(module)
            excused = {id(p) for _, part in parts if model_graphs.is_exported(part) for p in modules.all_modules(part)}
            ran = self._part(module)
            training = tuple(
                Observation(_inner(ran, path, part), since=self._switches.line_of_training(part))
                for path, part in parts
                if modules.training_flag(part) and id(part) not in excused and mode_dependence.is_mode_dependent(part)
            )
            if training:
                at, whole = self._sites.find_line(frame), bool(modules.training_flag(module))
                call = ForwardCall(ran, at, len(parts), exported=True, training=training, all_training=whole)
                self._calls.setdefault(call, [])
                if program is not None:
                    self._programs[program] = call
                return call
        except Exception as error:
            self.failures.append(error)
        return None

    def made(self, of: ForwardCall | ExportedProgram, graph: nn.Module) -> None:
        """The graph has been made that is to run in the model's place."""
        call = of if isinstance(of, ForwardCall) else self._programs.get(of)
        if call in self._calls:
            self._calls[call].append(graph)

    def _names(self, graphs: list[nn.Module]) -> Iterator[str]:
        """What those graphs are called that have run."""
        for graph in graphs:
            found = self._watch.find_model(modules.unwrap(graph))
            if found is not None:
                yield found[0].name

    def _part(self, module: nn.Module) -> ModuleInfo:
        found = self._watch.find_model(modules.unwrap(module))
        name, path = (found[0].name, found[1]) if found else (self._watch.name_of(module), "")
        return ModuleInfo(name, path, modules.type_name(module))


def _inner(whole: ModuleInfo, path: str, module: nn.Module) -> ModuleInfo:
    """A part of a model that changes with its mode."""
    return ModuleInfo(
        whole.model, ".".join(filter(None, (whole.path, path))), modules.type_name(module), mode_dependent=True
    )


programs: Patch[ModelExports] = Patch("__init__", ExportedProgram)
programs_run: Patch[ModelExports] = Patch("module", ExportedProgram)
traces: Patch[ModelExports] = Patch("make_module", torch.jit._trace)
onnx_traces: Patch[ModelExports] = Patch("forward", ONNXTracedModule)
_ALL = programs, programs_run, traces, onnx_traces


def start(observer: ModelExports) -> None:
    for each in _ALL:
        each.start(observer)


def stop(observer: ModelExports) -> None:
    for each in _ALL:
        each.stop(observer)


@programs.replace_with
def _observed(self: ExportedProgram, *args: Any, **kwargs: Any) -> None:
    programs.original(self, *args, **kwargs)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not export.__code__:
        frame = frame.f_back
    if frame is not None:
        for observer in programs.observers:
            observer.note(callers.module_of_frame(frame), frame.f_back, self)


@programs_run.replace_with
def _observed_module(self: ExportedProgram, *args: Any, **kwargs: Any) -> Any:
    graph = programs_run.original(self, *args, **kwargs)
    for observer in programs_run.observers:
        observer.made(self, graph)
    return graph


@traces.replace_with
def _observed_trace(mod: nn.Module, *args: Any, **kwargs: Any) -> Any:
    frame = sys._getframe(1)
    whole = frame.f_code is trace_module.__code__  # else it is a part of the model
    notes = [(observer, observer.note(mod, frame.f_back)) for observer in traces.observers] if whole else []
    graph = traces.original(mod, *args, **kwargs)
    for observer, call in notes:
        if call is not None:
            observer.made(call, graph)
    return graph


@onnx_traces.replace_with
def _observed_onnx(self: ONNXTracedModule, *args: Any) -> Any:
    result = onnx_traces.original(self, *args)
    for observer in onnx_traces.observers:
        observer.note(self.inner, sys._getframe(1))
    return result
