"""Every step of an optimizer -> the models that it trains, and the user's line that stepped it."""

from __future__ import annotations

import sys
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.observer_errors import Failures
from pytest_evalmode.observe.source.user_lines import Sites
from pytest_evalmode.trace import Use


class Optimizers:
    """Observes the optimizers of a window."""

    def __init__(self, watch: Watch, sites: Sites) -> None:
        self.failures = Failures()
        self._watch = watch
        self._sites = sites
        self._steps: dict[Use, None] = {}
        self._handle: RemovableHandle | None = None

    def start(self) -> None:
        self._handle = register_optimizer_step_post_hook(self._note)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def take(self) -> tuple[Use, ...]:
        taken, self._steps = tuple(self._steps), {}
        return taken

    def _note(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An optimizer has made a step."""
        try:
            tensors = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
            models = self._watch.holding(tensors)
            if models:
                at = self._sites.caller(sys._getframe(1))
                self._steps[Use(models, f"{type(optimizer).__name__}.step()", at)] = None
        except Exception as error:
            self.failures.append(error)
