"""What sets or converts all the tensors of a model by its name -> Use: loads, `half()` and `to()`, `requires_grad_()`.

A write to one tensor is seen by nobody; what it changed is.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ModelOperation


class ModelConversions:
    """Observes who writes to whole models of a window."""

    def __init__(self, watch: Watch, sites: UserLines) -> None:
        self.failures = ObserverErrors()
        self._watch = watch
        self._sites = sites
        self._uses: dict[ModelOperation, None] = {}

    def pop_operations(self) -> tuple[ModelOperation, ...]:
        taken, self._uses = tuple(self._uses), {}
        return taken

    def note(self, module: nn.Module, by: str, frame: FrameType) -> None:
        """A method of a module's was called in a frame."""
        try:
            tensors = {
                id(p) for part in modules.all_modules(module) for p in part._parameters.values() if p is not None
            }
            names = self._watch.find_owners(tensors)
            if names:
                self._uses[ModelOperation(names, f"{by}()", self._sites.find_line(frame))] = None
        except Exception as error:
            self.failures.append(error)


apply_patch: Patch[ModelConversions] = Patch("_apply")
requires_grad_patch: Patch[ModelConversions] = Patch("requires_grad_")
_RECURSIVE = getattr(apply_patch.original, "__code__", None)
_is_compiling = torch.compiler.is_compiling


@apply_patch.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = apply_patch.original(self, *args, **kwargs)
    if not _is_compiling():
        frame = _asker(sys._getframe(1))
        if frame is not None:
            for observer in apply_patch.observers:
                observer.note(self, frame.f_code.co_name, frame)
    return result


def _asker(frame: FrameType | None) -> FrameType | None:
    """`half()` or `to()`, behind overrides of `_apply`; None for a part of a module that is being converted."""
    while frame is not None and frame.f_code.co_name == "_apply":
        if frame.f_code is _RECURSIVE:
            return None
        frame = frame.f_back
    return frame


@requires_grad_patch.replace_with
def _observed_demand(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = requires_grad_patch.original(self, *args, **kwargs)
    if not _is_compiling():
        for observer in requires_grad_patch.observers:
            observer.note(self, "requires_grad_", sys._getframe(1))
    return result
