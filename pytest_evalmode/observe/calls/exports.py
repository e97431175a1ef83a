"""Observer of exports: models that torch traced or exported while they were in training mode.

The functions that make the graph are patched, so an exporter is observed under each of its names, and a failed export
is not reported: `torch.jit.trace` when it receives the model, `torch.export.export` (which `torch.onnx.export` calls)
when it creates the program, and the older `torch.onnx.export` when it has traced the model.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from types import FrameType
from typing import Any

from torch import nn

from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.model_code import model_graphs
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.private_api import EXPORT_CODE, TRACE_MODULE_CODE, ExportedProgram, ScriptModule
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ForwardCall, ModuleInfo, Observation


class ModelExports(Observer):
    """The exports of a window that stored the training mode of a mode-dependent module in a graph."""

    patched = patches.program_init, patches.program_module, patches.jit_trace, patches.onnx_trace

    def __init__(self, watch: Watch, user_lines: UserLines, mode_changes: ModeChanges) -> None:
        super().__init__()
        self._watch = watch
        self._user_lines = user_lines
        self._mode_changes = mode_changes
        self._calls: dict[ForwardCall, list[nn.Module]] = {}
        """Each call with the graphs that it made."""
        self._programs: weakref.WeakKeyDictionary[ExportedProgram, ForwardCall] = weakref.WeakKeyDictionary()

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        """Return the exports recorded so far and forget them."""
        recorded, self._calls = self._calls, {}
        find = self._watch.registry.find_model
        return tuple(
            replace(call, graphs=frozenset(owner[0].name for graph in graphs if (owner := find(modules.unwrap(graph)))))
            for call, graphs in recorded.items()
        )

    def add_export(
        self, module: nn.Module, frame: FrameType | None, program: ExportedProgram | None = None
    ) -> ForwardCall | None:
        """Record that torch makes a graph of a model, called from a frame, if the graph keeps training mode."""
        with self.errors:
            if isinstance(module, ScriptModule):
                return None
            parts = modules.walk(module)
            # An exported graph always reports training=True.
            exempt = model_graphs.exported_ids(part for _, part in parts)
            name, root_path = self._watch.registry.locate(modules.unwrap(module))
            root = ModuleInfo(name, root_path, modules.type_name(module))
            training = tuple(
                self._observe(root, path, part)
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
        return None

    def add_program(self, program: ExportedProgram, frame: FrameType | None) -> None:
        """Record a program that was created in a frame, if `torch.export.export` makes it."""
        with self.errors:
            while frame is not None and frame.f_code is not EXPORT_CODE:
                frame = frame.f_back
            if frame is not None:  # the first argument of export() is the model
                self.add_export(callers.module_of_frame(frame), frame.f_back, program)

    def add_graph(self, source: ForwardCall | ExportedProgram | None, graph: nn.Module) -> None:
        """Record the graph module that a call or an exported program made."""
        with self.errors:
            call = self._programs.get(source) if isinstance(source, ExportedProgram) else source
            if call in self._calls:
                self._calls[call].append(graph)

    def _observe(self, root: ModuleInfo, path: str, module: nn.Module) -> Observation:
        """Describe a mode-dependent submodule of an exported model."""
        full_path = ".".join(filter(None, (root.path, path)))
        changes_result = mode_dependence.changes_result(module)
        info = ModuleInfo(root.model, full_path, modules.type_name(module), True, changes_result)
        return Observation(info, since=self._mode_changes.line_of_training(module)[0])


@patches.program_init.replace_with
def _observed_init(self: ExportedProgram, *args: Any, **kwargs: Any) -> None:
    patches.program_init.original(self, *args, **kwargs)
    for observer in patches.program_init.observers:
        observer.add_program(self, sys._getframe(1))


@patches.program_module.replace_with
def _observed_module(self: ExportedProgram, *args: Any, **kwargs: Any) -> Any:
    graph = patches.program_module.original(self, *args, **kwargs)
    for observer in patches.program_module.observers:
        observer.add_graph(self, graph)
    return graph


@patches.jit_trace.replace_with
def _observed_trace(mod: nn.Module, *args: Any, **kwargs: Any) -> Any:
    frame = sys._getframe(1)
    # It is also called for each submodule.
    observers = patches.jit_trace.observers if frame.f_code is TRACE_MODULE_CODE else ()
    calls = [observer.add_export(mod, frame.f_back) for observer in observers]
    graph = patches.jit_trace.original(mod, *args, **kwargs)
    for observer, call in zip(observers, calls, strict=True):
        observer.add_graph(call, graph)
    return graph


@patches.onnx_trace.replace_with
def _observed_onnx(self: Any, *args: Any) -> Any:
    result = patches.onnx_trace.original(self, *args)
    for observer in patches.onnx_trace.observers:
        observer.add_export(self.inner, sys._getframe(1))
    return result
