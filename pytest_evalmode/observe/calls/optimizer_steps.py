"""Observer of optimizer steps: the models that a step trains, and the user's line."""

from __future__ import annotations

import sys
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.private_api import register_optimizer_step_post_hook
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ModelOperation


class OptimizerSteps(Observer):
    """The optimizer steps of a window that trained a watched model."""

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        super().__init__()
        self._watch = watch
        self._user_lines = user_lines
        self._steps: dict[ModelOperation, None] = {}
        self._handle: RemovableHandle | None = None

    def start(self, *, strict: bool = False) -> None:
        super().start(strict=strict)
        self._handle = register_optimizer_step_post_hook(self._add_step)

    def stop(self) -> None:
        super().stop()
        if self._handle is not None:
            self._handle.remove()

    def pop_steps(self) -> tuple[ModelOperation, ...]:
        """Return the steps recorded so far and forget them."""
        recorded, self._steps = tuple(self._steps), {}
        return recorded

    def _add_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self.errors:
            parameter_ids = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
            models = self._watch.registry.find_owners(parameter_ids)
            if models:
                at = self._user_lines.find_line(sys._getframe(1))
                self._steps[ModelOperation(models, f"{type(optimizer).__name__}.step()", at)] = None
