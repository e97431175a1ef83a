"""Which models an optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.failures import Failures


class Steps:
    """Observes the optimizers of a window; what they have stepped is known by name, as a model may die before the end.

    Torch's own hook for all optimizers: a step is rare, and one more call in it changes nothing.
    """

    def __init__(self, watched: Callable[[], Mapping[str, nn.Module]]) -> None:
        self.failures = Failures()
        self.models: set[str] = set()
        self._watched = watched
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def stop(self) -> None:
        self._handle.remove()

    def _stepped(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for name, model in self._watched().items():
                if any(id(p) in stepped for part in modules.tree(model) for p in part._parameters.values()):
                    self.models.add(name)
        except Exception as error:
            self.failures.append(error)
