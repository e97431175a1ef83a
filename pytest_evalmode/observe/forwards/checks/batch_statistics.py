"""Check for batch norms that normalize with the batch's own statistics whatever their mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.tree_cache import GRAPH_TYPES
from pytest_evalmode.observe.forwards.unregistered_modules import Arrival
from pytest_evalmode.observe.model_code import model_graphs
from pytest_evalmode.observe.private_api import BatchNorm
from pytest_evalmode.trace import Observation, Site


class BatchStatisticsCheck(ForwardCheck):
    """Check for batch norms without running statistics, and for graphs that were made in training mode."""

    def begin(self) -> None:
        self.observations: dict[int, Observation] = {}
        parts, tree = self.forward.parts, self.forward.tree
        norms = [parts[i] for i in tree.batch_norms if _uses_batch_statistics(parts[i])]
        # The forwards of compiled batch norms are not observed: note these now.
        unobserved = {id(p) for i in tree.opaque for p in modules.all_modules(parts[i])} if norms else ()
        for norm in norms:
            if id(norm) in unobserved and not self._is_explained(norm):
                self._note(norm, None)
        self._read_graphs(parts[i] for i in tree.graphs)
        self.unskippable = set(map(id, norms))

    def add_modules(self, arrival: Arrival) -> None:
        self._read_graphs(part for part in arrival.parts if isinstance(part, GRAPH_TYPES))

    def enter(self, module: nn.Module, frame: FrameType) -> None:
        if not isinstance(module, BatchNorm) or self._is_explained(module) or id(module) in self.observations:
            return
        if _uses_batch_statistics(module):
            self._note(module, self.window.user_lines.find_line(frame.f_back, self.forward.frame))

    def end(self, output: object) -> Mapping[str, object]:
        return {"batch_stats": tuple(self.observations.values())}

    def _read_graphs(self, parts: Iterable[nn.Module]) -> None:
        seen: set[int] = set()
        for part in parts:
            if id(part) not in seen:
                seen.update(map(id, modules.all_modules(part)))
                if id(part) not in self.forward.training:
                    for why in model_graphs.describe_batch_stats(part):
                        observation = Observation(self.forward.module_info(part), None, why, is_graph=True)
                        self.observations.setdefault(id(part), observation)

    def _is_explained(self, norm: nn.Module) -> bool:
        """Return whether a norm is in training mode and `train-mode` is reported anyway."""
        return bool(self.forward.training and modules.training_flag(norm))

    def _note(self, norm: nn.Module, cause: Site | None) -> None:
        why = f"it has no running statistics ({model_graphs.missing_statistics_reason(norm)})"
        self.observations[id(norm)] = Observation(self.forward.module_info(norm), cause, why)


def _uses_batch_statistics(norm: nn.Module) -> bool:
    """Return whether a batch norm has no running statistics, so that it uses the batch's in eval mode too."""
    return norm._buffers.get("running_mean") is None
