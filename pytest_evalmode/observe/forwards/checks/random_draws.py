"""Did a forward draw random numbers from a global generator, and who?

What was drawn since a generator was last read is put down to the module that ran then; so it is read wherever a module
that may draw begins or ends.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.checks.training_mode import note_training_modules
from pytest_evalmode.observe.forwards.tree_cache import GRAPH_TYPES
from pytest_evalmode.observe.source import callers, forward_code, model_graphs
from pytest_evalmode.observe.source.draw_calls import DrawCall
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import generators
from pytest_evalmode.trace import Observation, Site


class RandomDrawCheck(ForwardCheck):
    """Notes the modules in eval mode that moved a generator of torch's."""

    def begin(self) -> None:
        self.found: dict[int, Observation] = {}
        self.unseen: dict[int, set[int]] = {}
        """Of those that drew, the parts beneath them that may have: they are in training mode, and draw if they run."""
        self.seen: set[int] = set()
        """The parts that may draw which were seen to run."""
        self.start = self.state = generators.state()

    def enter(self, part: nn.Module, frame: FrameType) -> None:
        if frame is not self.forward.frame and self._is_boundary(part):
            self.seen.add(id(part))
            if self._moved():
                self._blame(callers.enclosing_forward_frame(frame), frame)

    def leave(self, part: nn.Module, output: object, frame: FrameType) -> None:
        if self._is_boundary(part) and self._moved() and not self._is_explained(part):
            self._blame(frame, frame)

    def interrupt(self, frame: FrameType) -> None:
        if self._moved():
            self._blame(callers.enclosing_forward_frame(frame), frame)

    def resume(self) -> None:
        self.state = generators.state()  # what was drawn so far has been told

    def end(self, output: object) -> Mapping[str, object]:
        if self._moved():
            self._blame(self.forward.frame, self.forward.frame)
        for drawer, trained in self.unseen.items():
            if not trained <= self.seen:  # one of them ran by its `.forward()`
                self.found.pop(drawer, None)
        if self.found and generators.is_unchanged(self.start, generators.state()):
            self.found.clear()  # what was drawn was put back, by fork_rng
        return {"draws": tuple(self.found.values()) if self.forward.is_model or self.context.strict else ()}

    def _moved(self) -> bool:
        """Whether a generator has moved since this was last asked."""
        now = generators.state()
        if generators.is_unchanged(self.state, now):
            return False
        self.state = now
        return True

    def _is_boundary(self, part: nn.Module) -> bool:
        """Whether what was drawn before a module and what is drawn in it are different modules' draws."""
        key = id(part)
        if key in self.forward.tree.may_draw or key in self.forward.lazy:
            return True
        hooked = part._forward_pre_hooks or part._forward_hooks  # what they draw is the module's, too
        if key not in self.forward.tree.module_ids and (hooked or forward_code.module_traits(part).may_draw):
            return True
        trained = self.forward.training.get(key)
        return (trained is not None and trained.module.mode_dependent) or self._is_trained_inside(part)

    def _is_explained(self, part: nn.Module) -> bool:
        """Whether a module initialises itself, or is in training mode, which is another question's."""
        return id(part) in self.forward.training or id(part) in self.forward.lazy or self._is_trained_inside(part)

    def _is_trained_inside(self, part: nn.Module) -> bool:
        """Whether a module in training mode is compiled into this one, where nobody sees it run."""
        training, tree = self.forward.training, self.forward.tree
        if not training or (id(part) in tree.module_ids and not tree.opaque):
            return False
        return modules.is_opaque(part) and any(id(p) in training for p in modules.all_modules(part))

    def _trained(self, module: nn.Module) -> set[int]:
        """The parts beneath a module, by `id`, that draw in training mode and are in it."""
        training = self.forward.training
        parts = modules.all_modules(module)[1:] if training else []
        return {id(part) for part in parts if id(part) in training and forward_code.module_traits(part).may_draw}

    def _blame(self, began: FrameType, frame: FrameType) -> None:
        """A generator has moved in the module that began in a frame, unless its training mode explains that."""
        outermost, sites = self.forward, self.context.sites
        module = callers.module_of_frame(began)
        drawer, found = module, list[DrawCall]()
        while not self._is_explained(module):
            drawer, found = suspects(module, seen=self.seen)
            if found or began is outermost.frame:
                break
            began = callers.enclosing_forward_frame(began)  # it was drawn before the module began, by who runs it
            module = callers.module_of_frame(began)
        else:
            return
        if are_foreign(module, found, sites):
            return
        if modules.training_flag(drawer) and outermost.is_model:
            note_training_modules(
                self.context, outermost, [drawer], sensitive=True
            )  # whatever its code tells, but for exported graphs
            if id(drawer) in outermost.training:
                return
        if drawer is not module or not found or found[0].gated:
            self.unseen[id(drawer)] = self._trained(module)
        cause = first_site(found, sites)
        if cause is None and module is not outermost.root:
            cause = sites.find_line_inside(frame.f_back, outermost.frame)
        why = f"{found[0].text}(...)" if found else ""
        told = Observation(
            outermost.part(drawer),
            cause,
            why,
            is_graph=isinstance(drawer, GRAPH_TYPES),
            training=bool(modules.training_flag(drawer)),
        )
        self.found.setdefault(id(drawer), told)


class HostRandomDrawCheck(ForwardCheck):
    """Strict: notes who moved Python's generator, or NumPy's."""

    def begin(self) -> None:
        self.before = generators.host_state()

    def end(self, output: object) -> Mapping[str, object]:
        moved = generators.moved_generators(self.before)
        if not moved or self.forward.training:
            return {}
        drawer, found = suspects(self.forward.root, hosts=moved)
        if are_foreign(self.forward.root, found, self.context.sites):
            return {}
        why = f"the generator of {' and '.join(moved)} moved"
        where = first_site(found, self.context.sites)
        return {
            "draws": (Observation(self.forward.part(drawer), where, why, training=bool(modules.training_flag(drawer))),)
        }


def suspects(
    module: nn.Module, *, seen: Container[int] = (), hosts: Container[str] = ("",)
) -> tuple[nn.Module, list[DrawCall]]:
    """The likeliest calls to have drawn, in a module's code or else in that of one beneath it.

    Of these rather one that was not `seen` to run: who was answers for itself.  `hosts` are those whose generators have
    moved: torch's, unless others are named.
    """
    first, *beneath = modules.all_modules(module)
    for part in (first, *sorted(beneath, key=lambda part: id(part) in seen)):
        found = [draw for draw in forward_code.find_draw_calls(part) if draw.host in hosts]
        if found and (part is module or not found[0].gated):
            return part, found
    return module, []


def are_foreign(module: nn.Module, suspects: list[DrawCall], sites: UserLines) -> bool:
    """Whether another thread may well have drawn, and no call here ignores the mode, as one would that drew."""
    return (
        sites.has_other_active_threads() and not model_graphs.may_draw(module) and all(draw.gated for draw in suspects)
    )


def first_site(suspects: list[DrawCall], sites: UserLines) -> Site | None:
    """The user's line of the likeliest call that stands in code of the user's."""
    return next((site for draw in suspects if (site := sites.site(draw.code, draw.line))), None)
