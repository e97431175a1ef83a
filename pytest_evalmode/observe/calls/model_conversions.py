"""Observer of methods that write to all tensors of a model: loads, `half()` and `to()`, `requires_grad_()`.

A write to a single tensor cannot be observed; only the change is found afterwards.
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
    """The calls of a window that set or converted all tensors of a watched model."""

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        self.failures = ObserverErrors()
        self._watch = watch
        self._user_lines = user_lines
        self._operations: dict[ModelOperation, None] = {}

    def pop_operations(self) -> tuple[ModelOperation, ...]:
        """Return the calls recorded so far and forget them."""
        recorded, self._operations = tuple(self._operations), {}
        return recorded

    def add_call(self, module: nn.Module, method: str, frame: FrameType) -> None:
        """Record that a method of a module was called in a frame."""
        try:
            parameter_ids = {
                id(p) for part in modules.all_modules(module) for p in part._parameters.values() if p is not None
            }
            models = self._watch.registry.find_owners(parameter_ids)
            if models:
                self._operations[ModelOperation(models, f"{method}()", self._user_lines.find_line(frame))] = None
        except Exception as error:
            self.failures.append(error)


apply_patch: Patch[ModelConversions] = Patch("_apply")
requires_grad_patch: Patch[ModelConversions] = Patch("requires_grad_")
_APPLY_CODE = getattr(apply_patch.original, "__code__", None)
_is_compiling = torch.compiler.is_compiling


@apply_patch.replace_with
def _observed_apply(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = apply_patch.original(self, *args, **kwargs)
    if not _is_compiling():
        frame = _conversion_frame(sys._getframe(1))
        if frame is not None:
            for observer in apply_patch.observers:
                observer.add_call(self, frame.f_code.co_name, frame)
    return result


def _conversion_frame(frame: FrameType | None) -> FrameType | None:
    """Return the frame of `half()` or `to()`, outside overrides of `_apply`.

    None if `_apply` of a parent is converting its children: the parent's call is the one to record.
    """
    while frame is not None and frame.f_code.co_name == "_apply":
        if frame.f_code is _APPLY_CODE:
            return None
        frame = frame.f_back
    return frame


@requires_grad_patch.replace_with
def _observed_requires_grad(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = requires_grad_patch.original(self, *args, **kwargs)
    if not _is_compiling():
        for observer in requires_grad_patch.observers:
            observer.add_call(self, "requires_grad_", sys._getframe(1))
    return result
