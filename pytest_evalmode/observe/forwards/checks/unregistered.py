"""Check for unregistered modules that ran inside a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.source import model_graphs
from pytest_evalmode.trace import Observation, Site


class UnregisteredModuleCheck(ForwardCheck):
    """Strict check for unregistered modules that hold tensors or depend on the mode."""

    def begin(self) -> None:
        self.observations: list[Observation] = []

    def add_modules(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        matters = why and any(
            modules.has_own_tensors(part) or mode_dependence.is_mode_dependent(part) for part in parts
        )
        if matters and not model_graphs.is_exported(parts[0]):
            self.observations.append(Observation(self.forward.module_info(parts[0]), cause))

    def end(self, output: object) -> Mapping[str, object]:
        return {"unregistered": tuple(self.observations)}
