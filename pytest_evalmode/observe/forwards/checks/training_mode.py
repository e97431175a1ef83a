"""Was a module in training mode?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import is_
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import CheckContext, ForwardCheck
from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.source import model_graphs
from pytest_evalmode.trace import Observation, Site


class Findings(tuple[Observation, ...]):
    """Findings that are the same in forward after forward, and hashed once."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class TrainingModeCheck(ForwardCheck):
    """Notes the modules in training mode that depend on the mode or hold parameters."""

    def begin(self) -> None:
        outermost, tree = self.forward, self.forward.tree
        self.judged = set(tree.training)
        if not tree.training:
            return
        now = outermost.model, self.context.watch.name_version, self.context.mode_changes.change_count
        if tree.findings_key != now or outermost.cause is not None:
            note_training_modules(self.context, outermost, outermost.parts, outermost.cause)
            tree.training_findings, tree.findings_key, tree.cause_searched, tree.last_findings = (
                outermost.training,
                now,
                set(),
                (),
            )
            tree.settled = frozenset()
        outermost.training, outermost.settled = tree.training_findings.copy(), tree.settled
        if outermost.training and tree.opaque:
            outermost.skippable -= {id(outermost.parts[i]) for i in tree.opaque}

    def add_modules(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        note_training_modules(self.context, self.forward, parts, cause, why)

    def enter(self, part: nn.Module, frame: FrameType) -> None:
        outermost, key = self.forward, id(part)
        if (key in outermost.tree.cause_searched and key in self.judged) or not modules.training_flag(part):
            return
        self._judge(part)
        found = outermost.training.get(key)
        if found is None or found.cause is not None or part is outermost.root or key in outermost.tree.cause_searched:
            return
        outermost.tree.cause_searched.add(key)
        cause = self.context.sites.find_line_inside(frame.f_back, outermost.frame)
        if cause is not None:
            found = outermost.training[key] = replace(found, cause=cause)
            if key in outermost.tree.training_findings:
                outermost.tree.training_findings[key] = found

    def leave(self, part: nn.Module, output: object, frame: FrameType) -> None:
        if modules.training_flag(part):
            self._judge(part)  # set by a hook or by the forward itself

    def end(self, output: object) -> Mapping[str, object]:
        tree, found = self.forward.tree, self.forward.training.values()
        if len(found) != len(tree.last_findings) or not all(map(is_, found, tree.last_findings)):
            tree.last_findings = Findings(found)
        elif tree.training and not tree.settled:
            dropouts = tree.may_draw & tree.skippable
            more = {
                key
                for key, found in tree.training_findings.items()
                if (found.module.mode_dependent and key not in dropouts)
                or not (found.cause or key in tree.cause_searched)
            }
            tree.settled = tree.training - (tree.may_draw - dropouts) - more
        whole = bool(found and modules.training_flag(self.forward.owner))
        return {"training": tree.last_findings, "all_training": whole}

    def _judge(self, part: nn.Module) -> None:
        if id(part) not in self.judged:
            self.judged.add(id(part))
            note_training_modules(self.context, self.forward, [part])


def note_training_modules(
    context: CheckContext,
    forward: ForwardContext,
    parts: list[nn.Module],
    cause: Site | None = None,
    why: str = "",
    *,
    sensitive: bool | None = None,
) -> None:
    """Note the parts in training mode that hold parameters or are sensitive, by their code unless it is given."""
    suspects = [part for part in parts if modules.training_flag(part)]
    if not suspects:
        return
    excused = {id(p) for part in parts if model_graphs.is_exported(part) for p in modules.all_modules(part)}
    for part in suspects:
        if id(part) not in excused:
            depends = mode_dependence.is_mode_dependent(part) if sensitive is None else sensitive
            if depends or (modules.is_layer_with_weights(part) and id(part) not in forward.late_submodules):
                named = replace(forward.part(part), mode_dependent=depends)
                found = Observation(named, cause, why, since=context.mode_changes.line_of_training(part))
                forward.training.setdefault(id(part), found)
