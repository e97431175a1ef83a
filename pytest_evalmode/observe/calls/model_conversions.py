"""Observer of methods that write to all tensors of a model: loads, `half()` and `to()`, `requires_grad_()`.

A write to a single tensor cannot be observed; only the change is found afterwards.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ModelOperation


class ModelConversions(Observer):
    """The calls of a window that set or converted all tensors of a watched model."""

    patched = patches.module_apply, patches.requires_grad

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        super().__init__()
        self._watch = watch
        self._user_lines = user_lines
        self._operations: dict[ModelOperation, None] = {}

    def pop_operations(self) -> tuple[ModelOperation, ...]:
        """Return the calls recorded so far and forget them."""
        recorded, self._operations = tuple(self._operations), {}
        return recorded

    def add_call(self, module: nn.Module, method: str, frame: FrameType) -> None:
        """Record that a method of a module was called in a frame."""
        with self.errors:
            parameter_ids = {
                id(p) for part in modules.all_modules(module) for p in part._parameters.values() if p is not None
            }
            models = self._watch.registry.find_owners(parameter_ids)
            if models:
                self._operations[ModelOperation(models, f"{method}()", self._user_lines.find_line(frame))] = None


_APPLY_CODE = getattr(patches.module_apply.original, "__code__", None)


@patches.module_apply.replace_with
def _observed_apply(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = patches.module_apply.original(self, *args, **kwargs)
    if not is_compiling():
        frame = _conversion_frame(sys._getframe(1))
        if frame is not None:
            for observer in patches.module_apply.observers:
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


@patches.requires_grad.replace_with
def _observed_requires_grad(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = patches.requires_grad.original(self, *args, **kwargs)
    if not is_compiling():
        for observer in patches.requires_grad.observers:
            observer.add_call(self, "requires_grad_", sys._getframe(1))
    return result
