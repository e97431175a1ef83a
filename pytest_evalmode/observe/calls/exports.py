"""Observer of exports: models that torch traced or exported while they were in training mode.

The functions that make the graph are patched, so an exporter is observed under each of its names.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import FrameType

from torch import nn
from torch.export import ExportedProgram

from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.model_code import model_graphs
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Call, Observer
from pytest_evalmode.observe.private_api import EXPORT_CODE, TRACE_MODULE_CODE, ScriptModule
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
        self._exports: dict[ForwardCall, list[nn.Module]] = {}
        """Each export with the graphs that it made."""
        self._programs: weakref.WeakKeyDictionary[ExportedProgram, ForwardCall] = weakref.WeakKeyDictionary()

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        """Return the exports recorded so far and forget them."""
        recorded, self._exports = self._exports, {}
        find = self._watch.registry.find_model
        return tuple(
            replace(call, graphs=frozenset(owner[0].name for graph in graphs if (owner := find(modules.unwrap(graph)))))
            for call, graphs in recorded.items()
        )

    def _add_export(self, module: nn.Module, frame: FrameType | None) -> ForwardCall | None:
        """Record that torch makes a graph of a model, called from a frame, if the graph keeps training mode."""
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
        if not training:
            return None
        at, all_training = self._user_lines.find_line(frame), bool(modules.training_flag(module))
        export = ForwardCall(root, at, len(parts), exported=True, training=training, all_training=all_training)
        self._exports.setdefault(export, [])
        return export

    def add_program(self, call: Call) -> None:
        """Record a program that was created, if `torch.export.export` makes it."""
        frame: FrameType | None = call.frame
        while frame is not None and frame.f_code is not EXPORT_CODE:
            frame = frame.f_back
        if frame is not None:  # the first argument of export() is the model
            export = self._add_export(callers.module_of_frame(frame), frame.f_back)
            if export is not None:
                self._programs[call.args[0]] = export

    def add_graph(self, call: Call) -> None:
        """Record the graph module of an exported program."""
        if (export := self._programs.get(call.args[0])) in self._exports:
            self._exports[export].append(call.result)

    def add_trace(self, call: Call) -> None:
        """Record the graph that `torch.jit.trace` makes of a model; it also makes one of each submodule."""
        is_model = call.frame.f_code is TRACE_MODULE_CODE
        export = self._add_export(call.args[0], call.frame.f_back) if is_model else None
        if export is not None:
            self._exports[export].append(call.result)

    def add_onnx(self, call: Call) -> None:
        """Record a model that the older `torch.onnx.export` has traced."""
        self._add_export(call.args[0].inner, call.frame)

    def _observe(self, root: ModuleInfo, path: str, module: nn.Module) -> Observation:
        """Describe a mode-dependent submodule of an exported model."""
        full_path = ".".join(filter(None, (root.path, path)))
        changes_result = mode_dependence.changes_result(module)
        info = ModuleInfo(root.model, full_path, modules.type_name(module), True, changes_result)
        return Observation(info, since=self._mode_changes.line_of_training(module)[0])
