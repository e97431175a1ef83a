"""Was a module in training mode?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import is_
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import Question, Scene
from pytest_evalmode.observe.forwards.context import Outermost
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.source import model_graphs
from pytest_evalmode.trace import Finding, Site


class Findings(tuple[Finding, ...]):
    """Findings that are the same in forward after forward, and hashed once."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class Modes(Question):
    """Notes the modules in training mode that depend on the mode or hold parameters."""

    def begin(self) -> None:
        outermost, tree = self.outermost, self.outermost.tree
        self.judged = set(tree.training)
        if not tree.training:
            return
        now = outermost.model, self.scene.watch.names, self.scene.switches.count
        if tree.told_at != now or outermost.cause is not None:
            judge(self.scene, outermost, outermost.parts, outermost.cause)
            tree.told, tree.told_at, tree.asked, tree.findings = outermost.training, now, set(), ()
            tree.settled = frozenset()
        outermost.training, outermost.settled = tree.told.copy(), tree.settled
        if outermost.training and tree.opaque:
            outermost.quiet -= {id(outermost.parts[i]) for i in tree.opaque}

    def join(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        judge(self.scene, self.outermost, parts, cause, why)

    def enter(self, part: nn.Module, frame: FrameType) -> None:
        outermost, key = self.outermost, id(part)
        if (key in outermost.tree.asked and key in self.judged) or not modules.mode(part):
            return
        self._judge(part)
        found = outermost.training.get(key)
        if found is None or found.cause is not None or part is outermost.ran or key in outermost.tree.asked:
            return
        outermost.tree.asked.add(key)
        cause = self.scene.sites.inside(frame.f_back, outermost.frame)
        if cause is not None:
            found = outermost.training[key] = replace(found, cause=cause)
            if key in outermost.tree.told:
                outermost.tree.told[key] = found

    def leave(self, part: nn.Module, output: object, frame: FrameType) -> None:
        if modules.mode(part):
            self._judge(part)  # set by a hook or by the forward itself

    def end(self, output: object) -> Mapping[str, object]:
        tree, found = self.outermost.tree, self.outermost.training.values()
        if len(found) != len(tree.findings) or not all(map(is_, found, tree.findings)):
            tree.findings = Findings(found)
        elif tree.training and not tree.settled:
            dropouts = tree.drawing & tree.quiet
            more = {
                key
                for key, found in tree.told.items()
                if (found.part.sensitive and key not in dropouts) or not (found.cause or key in tree.asked)
            }
            tree.settled = tree.training - (tree.drawing - dropouts) - more
        whole = bool(found and modules.mode(self.outermost.owner))
        return {"training": tree.findings, "all_training": whole}

    def _judge(self, part: nn.Module) -> None:
        if id(part) not in self.judged:
            self.judged.add(id(part))
            judge(self.scene, self.outermost, [part])


def judge(
    scene: Scene,
    outermost: Outermost,
    parts: list[nn.Module],
    cause: Site | None = None,
    why: str = "",
    *,
    sensitive: bool | None = None,
) -> None:
    """Note the parts in training mode that hold parameters or are sensitive, by their code unless it is given."""
    suspects = [part for part in parts if modules.mode(part)]
    if not suspects:
        return
    excused = {id(p) for part in parts if model_graphs.is_exported(part) for p in modules.tree(part)}
    for part in suspects:
        if id(part) not in excused:
            depends = mode_dependence.is_sensitive(part) if sensitive is None else sensitive
            if depends or (modules.holds_weights(part) and id(part) not in outermost.newcomers):
                named = replace(outermost.part(part), sensitive=depends)
                found = Finding(named, cause, why, since=scene.switches.since(part))
                outermost.training.setdefault(id(part), found)
