"""Did a batch norm in eval mode normalise with the batch's own statistics?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FrameType
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import Question
from pytest_evalmode.observe.forwards.tree_cache import GRAPHS
from pytest_evalmode.observe.source import model_graphs
from pytest_evalmode.trace import Finding, Site


class Statistics(Question):
    """Notes the batch norms that have no statistics of their own, and the graphs that were made in training mode."""

    def begin(self) -> None:
        self.found: dict[int, Finding] = {}
        parts, tree = self.outermost.parts, self.outermost.tree
        norms = [norm for i in tree.norms if _uses_the_batch(norm := cast(_BatchNorm, parts[i]))]
        if norms:
            self.outermost.quiet -= set(map(id, norms))
            # Those whose forward nobody will see run.
            inside = {id(p) for i in tree.opaque for p in modules.tree(parts[i])}
            for norm in norms:
                if id(norm) in inside and not modules.mode(norm):
                    self._note(norm, None)
        if tree.graphs:
            self._read(parts[i] for i in tree.graphs)

    def join(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        self._read(part for part in parts if isinstance(part, GRAPHS))

    def enter(self, part: nn.Module, frame: FrameType) -> None:
        if not isinstance(part, _BatchNorm) or modules.mode(part) or id(part) in self.found:
            return
        if _uses_the_batch(part):
            self._note(part, self.scene.sites.inside(frame.f_back, self.outermost.frame))

    def end(self, output: object) -> Mapping[str, object]:
        return {"batch_stats": tuple(self.found.values())}

    def _read(self, parts: Iterable[nn.Module]) -> None:
        inside: set[int] = set()
        for part in parts:
            if id(part) not in inside:
                inside.update(map(id, modules.tree(part)))
                if id(part) not in self.outermost.training:
                    for sentence in model_graphs.batch_norms(part):
                        self.found.setdefault(id(part), Finding(self.outermost.part(part), None, sentence, graph=True))

    def _note(self, norm: _BatchNorm, cause: Site | None) -> None:
        kept = getattr(norm, "track_running_stats", False)
        why = f"it has no running statistics ({'they were set to None' if kept else 'track_running_stats=False'})"
        self.found[id(norm)] = Finding(self.outermost.part(norm), cause, why)


def _uses_the_batch(norm: _BatchNorm) -> bool:
    """Whether a batch norm normalises with the batch's statistics for want of others."""
    return norm._buffers.get("running_mean") is None
