"""Observer of optimizer steps: the models that a step trains, and the user's line."""

from __future__ import annotations

import sys
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ModelOperation


class OptimizerSteps:
    """The optimizer steps of a window that trained a watched model."""

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        self.failures = ObserverErrors()
        self._watch = watch
        self._user_lines = user_lines
        self._steps: dict[ModelOperation, None] = {}
        self._handle: RemovableHandle | None = None

    def start(self) -> None:
        self._handle = register_optimizer_step_post_hook(self._add_step)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def pop_steps(self) -> tuple[ModelOperation, ...]:
        """Return the steps recorded so far and forget them."""
        recorded, self._steps = tuple(self._steps), {}
        return recorded

    def _add_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            parameter_ids = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
            models = self._watch.registry.find_owners(parameter_ids)
            if models:
                at = self._user_lines.find_line(sys._getframe(1))
                self._steps[ModelOperation(models, f"{type(optimizer).__name__}.step()", at)] = None
        except Exception as error:
            self.failures.append(error)
