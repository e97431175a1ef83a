"""Observer of exports: models that torch traced or exported while they were in training mode.

The functions that make the graph are patched, so an exporter is observed under each of its names, and a failed export
is not reported: `torch.jit.trace` when it receives the model, `torch.export.export` (which `torch.onnx.export` calls)
when it creates the program, and the older `torch.onnx.export` when it has traced the model.
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
    """The exports of a window that stored the training mode of a mode-dependent module in a graph."""

    def __init__(self, watch: Watch, user_lines: UserLines, mode_changes: ModeChanges) -> None:
        self.failures = ObserverErrors()
        self._watch = watch
        self._user_lines = user_lines
        self._mode_changes = mode_changes
        self._calls: dict[ForwardCall, list[nn.Module]] = {}
        """Each call with the graphs that it made."""
        self._programs: weakref.WeakKeyDictionary[ExportedProgram, ForwardCall] = weakref.WeakKeyDictionary()

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        """Return the exports recorded so far and forget them."""
        recorded, self._calls = self._calls, {}
        return tuple(replace(call, graphs=frozenset(self._names(graphs))) for call, graphs in recorded.items())

    def add_export(
        self, module: nn.Module, frame: FrameType | None, program: ExportedProgram | None = None
    ) -> ForwardCall | None:
        """Record that torch makes a graph of a model, called from a frame, if the graph keeps training mode."""
        try:
            if isinstance(module, ScriptModule):
                return None
            parts = modules.walk(module)
            # An exported graph always reports training=True.
            exempt = {id(p) for _, part in parts if model_graphs.is_exported(part) for p in modules.all_modules(part)}
            root = self._describe(module)
            training = tuple(
                Observation(_describe_part(root, path, part), since=self._mode_changes.line_of_training(part))
                for path, part in parts
                if modules.training_flag(part) and id(part) not in exempt and mode_dependence.is_mode_dependent(part)
            )
            if training:
                at, all_training = self._user_lines.find_line(frame), bool(modules.training_flag(module))
                call = ForwardCall(root, at, len(parts), exported=True, training=training, all_training=all_training)
                self._calls.setdefault(call, [])
                if program is not None:
                    self._programs[program] = call
                return call
        except Exception as error:
            self.failures.append(error)
        return None

    def add_graph(self, source: ForwardCall | ExportedProgram, graph: nn.Module) -> None:
        """Record the graph module that a call or an exported program made."""
        call = source if isinstance(source, ForwardCall) else self._programs.get(source)
        if call in self._calls:
            self._calls[call].append(graph)

    def _names(self, graphs: list[nn.Module]) -> Iterator[str]:
        """Yield the model names of those graphs that have run."""
        for graph in graphs:
            owner = self._watch.registry.find_model(modules.unwrap(graph))
            if owner is not None:
                yield owner[0].name

    def _describe(self, module: nn.Module) -> ModuleInfo:
        name, path = self._watch.registry.locate(modules.unwrap(module))
        return ModuleInfo(name, path, modules.type_name(module))


def _describe_part(root: ModuleInfo, path: str, module: nn.Module) -> ModuleInfo:
    """Describe a mode-dependent submodule of an exported model."""
    full_path = ".".join(filter(None, (root.path, path)))
    return ModuleInfo(root.model, full_path, modules.type_name(module), mode_dependent=True)


program_init_patch: Patch[ModelExports] = Patch("__init__", ExportedProgram)
program_module_patch: Patch[ModelExports] = Patch("module", ExportedProgram)
jit_trace_patch: Patch[ModelExports] = Patch("make_module", torch.jit._trace)
onnx_trace_patch: Patch[ModelExports] = Patch("forward", ONNXTracedModule)
_PATCHES = program_init_patch, program_module_patch, jit_trace_patch, onnx_trace_patch


def start(observer: ModelExports) -> None:
    for patch in _PATCHES:
        patch.start(observer)


def stop(observer: ModelExports) -> None:
    for patch in _PATCHES:
        patch.stop(observer)


@program_init_patch.replace_with
def _observed_init(self: ExportedProgram, *args: Any, **kwargs: Any) -> None:
    program_init_patch.original(self, *args, **kwargs)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not export.__code__:
        frame = frame.f_back
    if frame is not None:
        for observer in program_init_patch.observers:
            # The first argument of export() is the model.
            observer.add_export(callers.module_of_frame(frame), frame.f_back, self)


@program_module_patch.replace_with
def _observed_module(self: ExportedProgram, *args: Any, **kwargs: Any) -> Any:
    graph = program_module_patch.original(self, *args, **kwargs)
    for observer in program_module_patch.observers:
        observer.add_graph(self, graph)
    return graph


@jit_trace_patch.replace_with
def _observed_trace(mod: nn.Module, *args: Any, **kwargs: Any) -> Any:
    frame = sys._getframe(1)
    is_root = frame.f_code is trace_module.__code__  # it is also called for each submodule
    calls = (
        [(observer, observer.add_export(mod, frame.f_back)) for observer in jit_trace_patch.observers]
        if is_root
        else []
    )
    graph = jit_trace_patch.original(mod, *args, **kwargs)
    for observer, call in calls:
        if call is not None:
            observer.add_graph(call, graph)
    return graph


@onnx_trace_patch.replace_with
def _observed_onnx(self: ONNXTracedModule, *args: Any) -> Any:
    result = onnx_trace_patch.original(self, *args)
    for observer in onnx_trace_patch.observers:
        observer.add_export(self.inner, sys._getframe(1))
    return result
