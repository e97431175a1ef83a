"""Check for unregistered modules that ran inside a model."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.unregistered_modules import Arrival
from pytest_evalmode.observe.model_code import model_graphs
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.trace import Observation


class UnregisteredModuleCheck(ForwardCheck):
    """Strict check for unregistered modules that hold tensors or depend on the mode."""

    def begin(self) -> None:
        self.observations: list[Observation] = []

    def add_modules(self, arrival: Arrival) -> None:
        module, matters = arrival.parts[0], (modules.own_tensors, mode_dependence.is_mode_dependent)
        relevant = arrival.why and any(test(part) for part in arrival.parts for test in matters)
        if relevant and not model_graphs.is_exported(module):
            self.observations.append(Observation(self.forward.module_info(module), arrival.cause))

    def end(self, output: object) -> Mapping[str, object]:
        return {"unregistered": tuple(self.observations)}
