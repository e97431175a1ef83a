"""Checks for forwards that drew random numbers from a global generator.

The generator's state is read wherever a module that may draw starts or ends: the module in between made the change.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from itertools import chain
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.checks.training_mode import observe_training
from pytest_evalmode.observe.forwards.tree_cache import GRAPH_TYPES
from pytest_evalmode.observe.model_code import forward_code, model_graphs
from pytest_evalmode.observe.model_code.draw_calls import DrawCall
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import generators
from pytest_evalmode.trace import Observation, Site


class RandomDrawCheck(ForwardCheck):
    """Check for modules that drew from a torch generator; strict also from Python's or NumPy's."""

    def begin(self) -> None:
        self.observations: dict[int, Observation] = {}
        self.training: dict[int, Observation] = {}
        """Modules that drew in training mode, although their code does not show that they depend on it."""
        self.training_inside: dict[int, set[int]] = {}
        """The modules in training mode inside a module that drew; the draw may be one of theirs."""
        self.observed: set[int] = set()
        """The modules that may draw and whose forward was observed."""
        self.start = self.state = generators.state()
        self.host_start = generators.host_state() if self.window.strict else None

    def enter(self, module: nn.Module, frame: FrameType) -> None:
        if frame is not self.forward.frame and self._is_boundary(module):
            self.observed.add(id(module))
            self.interrupt(frame)

    def leave(self, module: nn.Module, output: object, frame: FrameType) -> None:
        if self._is_boundary(module) and self._has_drawn():
            self._blame(frame)

    def interrupt(self, frame: FrameType) -> None:
        if self._has_drawn():
            self._blame(callers.enclosing_forward_frame(frame))

    def resume(self) -> None:
        self.state = generators.state()  # the checks of the model that ran have reported its draws

    def end(self, output: object) -> Mapping[str, object]:
        forward = self.forward
        if self._has_drawn():
            self._blame(forward.frame)
        for drawer, training in self.training_inside.items():
            if not training <= self.observed:  # one may have run as `module.forward(x)`, which is not observed
                self.observations.pop(drawer, None)
        if self.observations and generators.is_unchanged(self.start, generators.state()):
            self.observations.clear()  # the state was restored, by fork_rng for example
        draws = tuple(self.observations.values()) if forward.is_model or self.window.strict else ()
        return {"draws": (*draws, *self._host_draws()), "training": tuple(self.training.values())}

    def _host_draws(self) -> Iterator[Observation]:
        """Yield the module that used Python's or NumPy's generator, unless training mode explains it."""
        moved = generators.moved_generators(self.host_start) if self.host_start is not None else ()
        root, user_lines = self.forward.root, self.window.user_lines
        if moved and not (self.forward.training or self.training):
            drawer, calls = find_likely_drawer(root, moved)
            if not may_be_other_thread(root, calls, user_lines):
                why = f"it used the generator of {' and '.join(moved)}"
                yield self._observe(drawer, first_user_line(calls, user_lines), why)

    def _observe(self, drawer: nn.Module, cause: Site | None, why: str, *, is_graph: bool = False) -> Observation:
        in_training = bool(modules.training_flag(drawer))
        return Observation(self.forward.module_info(drawer), cause, why, is_graph=is_graph, training=in_training)

    def _has_drawn(self) -> bool:
        """Return whether a generator's state has changed since the last call."""
        now = generators.state()
        if generators.is_unchanged(self.state, now):
            return False
        self.state = now
        return True

    def _is_boundary(self, module: nn.Module) -> bool:
        """Return whether the module may draw, so that its draws must be kept apart from those around it."""
        key, tree = id(module), self.forward.tree
        if key in tree.may_draw or self._is_explained(module):
            return True
        hooked = module._forward_pre_hooks or module._forward_hooks  # a draw of a hook is blamed on the module
        return key not in tree.module_ids and bool(hooked or forward_code.module_traits(module).may_draw)

    def _is_explained(self, module: nn.Module) -> bool:
        """Return whether draws are expected: the module initializes itself, or train-mode reports that it may draw."""
        forward, key = self.forward, id(module)
        if key in self.training or key in forward.lazy or self._depends_on_mode(module):
            return True
        # A module in training mode may be compiled into this one, so that its forward is not observed.
        if not forward.training or (key in forward.tree.module_ids and not forward.tree.opaque):
            return False
        return modules.is_opaque(module) and any(id(p) in forward.training for p in modules.all_modules(module))

    def _depends_on_mode(self, module: nn.Module) -> bool:
        """Return whether train-mode reports a module whose code reads its mode."""
        observation = self.forward.training.get(id(module))
        return observation is not None and observation.module.mode_dependent

    def _blame(self, start: FrameType) -> None:
        """Note which module drew, unless its training mode explains that.

        `start` is the frame in which the forward began that was running when the generator changed.
        """
        forward, user_lines = self.forward, self.window.user_lines
        while not self._is_explained(module := callers.module_of_frame(start)):
            drawer, calls = self._find_drawer(module)
            # The generator was read when the outermost forward or a module that may draw began: it drew since then.
            if calls or start is forward.frame or id(module) in self.observed:
                break
            # The module cannot draw, so the draw happened before it started, in the module that runs it.
            start = callers.enclosing_forward_frame(start)
        else:
            return
        if may_be_other_thread(module, calls, user_lines) or self._depends_on_mode(drawer):
            return
        always_draws = bool(calls) and calls[0].is_certain
        in_training = modules.training_flag(drawer) and forward.is_model and not model_graphs.is_exported(drawer)
        if in_training and not always_draws:
            if id(drawer) not in forward.training:  # it has drawn, so it depends on the mode
                self.training[id(drawer)] = observe_training(forward, drawer, mode_dependent=True)
            return
        if drawer is not module or not always_draws:
            self.training_inside[id(drawer)] = {
                id(part)
                for part in modules.all_modules(module)[1:]
                if id(part) in forward.training and forward_code.module_traits(part).may_draw
            }
        cause = first_user_line(calls, user_lines)
        if cause is None and module is not forward.root:
            cause = user_lines.find_line(start.f_back, forward.frame)
        why = f"{calls[0].text}(...)" if calls else ""
        observation = self._observe(drawer, cause, why, is_graph=isinstance(drawer, GRAPH_TYPES))
        self.observations.setdefault(id(drawer), observation)

    def _find_drawer(self, module: nn.Module) -> tuple[nn.Module, list[DrawCall]]:
        """Return the module that has drawn while `module` ran, and the calls in its code that may have.

        It is the module itself, or a part of it whose code ran unobserved: compiled, or called as `part.forward(x)`.
        """
        likely: tuple[nn.Module, list[DrawCall]] = module, []
        for part, method in chain([(module, "")], self._find_unobserved(module)):
            calls = [call for call in forward_code.find_draw_calls(part, method) if not call.host]
            if calls and calls[0].is_certain:
                return part, calls
            if calls and not likely[1] and (part is module or modules.training_flag(part) or not calls[0].gated):
                likely = part, calls
        return likely

    def _find_unobserved(self, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Yield the parts of a module whose code may have run without their forward being observed, with the method."""
        seen = set[tuple[int, str]]()
        for part in modules.all_modules(module):
            if part is not module and self._is_boundary(part):
                continue  # it was observed, if it ran
            if modules.is_opaque(part):
                found = [(inner, "forward") for inner in modules.all_modules(part)[1:]]
            else:
                found = forward_code.find_method_calls(part)
            for inner, method in found:
                if (id(inner), method) not in seen and not (method == "forward" and id(inner) in self.observed):
                    seen.add((id(inner), method))
                    yield inner, method


def find_likely_drawer(module: nn.Module, hosts: Container[str]) -> tuple[nn.Module, list[DrawCall]]:
    """Return which of a module and its submodules most likely used the generators of some libraries, and the calls."""
    for part in modules.all_modules(module):
        calls = [call for call in forward_code.find_draw_calls(part) if call.host in hosts]
        if calls and (part is module or not calls[0].gated):
            return part, calls
    return module, []


def may_be_other_thread(module: nn.Module, calls: list[DrawCall], user_lines: UserLines) -> bool:
    """Return whether another thread may have drawn: one is active, and every call in `calls` depends on the mode."""
    if not user_lines.has_other_active_threads() or model_graphs.may_draw(module):
        return False
    return not any(call.is_certain for call in calls)


def first_user_line(calls: list[DrawCall], user_lines: UserLines) -> Site | None:
    """Return the line of the most likely call that is in user code."""
    return next((site for call in calls if (site := user_lines.site(call.code, call.line))), None)
