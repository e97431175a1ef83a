"""Did a batch norm in eval mode normalise with the batch's own statistics?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FrameType
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.tree_cache import GRAPH_TYPES
from pytest_evalmode.observe.source import model_graphs
from pytest_evalmode.trace import Observation, Site


class BatchStatisticsCheck(ForwardCheck):
    """Notes the batch norms that have no statistics of their own, and the graphs that were made in training mode."""

    def begin(self) -> None:
        self.found: dict[int, Observation] = {}
        parts, tree = self.forward.parts, self.forward.tree
        norms = [norm for i in tree.batch_norms if _uses_the_batch(norm := cast(_BatchNorm, parts[i]))]
        if norms:
            self.forward.skippable -= set(map(id, norms))
            # Those whose forward nobody will see run.
            inside = {id(p) for i in tree.opaque for p in modules.all_modules(parts[i])}
            for norm in norms:
                if id(norm) in inside and not modules.training_flag(norm):
                    self._note(norm, None)
        if tree.graphs:
            self._read(parts[i] for i in tree.graphs)

    def add_modules(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        self._read(part for part in parts if isinstance(part, GRAPH_TYPES))

    def enter(self, part: nn.Module, frame: FrameType) -> None:
        if not isinstance(part, _BatchNorm) or modules.training_flag(part) or id(part) in self.found:
            return
        if _uses_the_batch(part):
            self._note(part, self.context.sites.find_line_inside(frame.f_back, self.forward.frame))

    def end(self, output: object) -> Mapping[str, object]:
        return {"batch_stats": tuple(self.found.values())}

    def _read(self, parts: Iterable[nn.Module]) -> None:
        inside: set[int] = set()
        for part in parts:
            if id(part) not in inside:
                inside.update(map(id, modules.all_modules(part)))
                if id(part) not in self.forward.training:
                    for sentence in model_graphs.describe_batch_stats(part):
                        self.found.setdefault(
                            id(part), Observation(self.forward.part(part), None, sentence, is_graph=True)
                        )

    def _note(self, norm: _BatchNorm, cause: Site | None) -> None:
        kept = getattr(norm, "track_running_stats", False)
        why = f"it has no running statistics ({'they were set to None' if kept else 'track_running_stats=False'})"
        self.found[id(norm)] = Observation(self.forward.part(norm), cause, why)


def _uses_the_batch(norm: _BatchNorm) -> bool:
    """Whether a batch norm normalises with the batch's statistics for want of others."""
    return norm._buffers.get("running_mean") is None
