"""`inference()`: eval mode, no autograd and a guard in one `with` statement."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

from torch import nn, no_grad

from pytest_evalmode.guards import Guard, require_module
from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.model_code.model_graphs import exported_ids
from pytest_evalmode.policy import Policy


def inference(model: nn.Module) -> Guard:
    """Run a model in eval mode with autograd off, under a guard.

    Use it as `with inference(model):`.  On exit, each submodule gets its own `training` flag back.

    Args:
        model: the model to switch and to watch.

    Returns:
        A `Guard`. Use it as a context manager, once.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
        HygieneError: on exit, if the inference was not clean.
    """
    return Inference(Policy(), GuardConfig(), require_module("inference(model)", model))


class Inference(Guard):
    """A guard that also sets its model to eval mode and turns autograd off, and restores both on exit."""

    def __enter__(self) -> Self:
        if not self._initial_models:
            raise RuntimeError("inference(model) was entered a second time; create a new one for each block")
        (model,) = self._initial_models
        modes = [
            (part, mode) for part in modules.all_modules(model) if (mode := modules.training_flag(part)) is not None
        ]
        exported = exported_ids(modules.all_modules(model))
        with ExitStack() as undo:
            undo.callback(_set_modes, modes)
            if not exported:
                model.eval()
            _set_modes((module, False) for module, training in modes if training and id(module) not in exported)
            undo.enter_context(no_grad())
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        __tracebackhide__ = True
        with self._undo:
            super().__exit__(kind, error, traceback)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
