"""Every module's forward, on any thread -> ForwardCall.

`nn.Module.__call__` is wrapped while a window is open, as `torch.fx` wraps it while it traces, and put back after the
last one.  Torch's global hooks would be the other way.  They lose a forward that ends in a BaseException, and a model
that was compiled in place; they make `torch.compile(model)(x)` warn and `torch.export.export(strict=True)` fail; and a
model that was compiled while they were there is compiled again once they are gone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from operator import attrgetter
from time import perf_counter
from types import FrameType
from typing import Any

from torch import is_grad_enabled, nn
from torch.compiler import is_compiling
from torch.jit import is_tracing  # type: ignore[attr-defined]

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import Switches
from pytest_evalmode.observe.calls.timeline import Events
from pytest_evalmode.observe.forwards import unregistered_modules
from pytest_evalmode.observe.forwards.checks.attribute_changes import AttributeChanges
from pytest_evalmode.observe.forwards.checks.autograd import Autograd
from pytest_evalmode.observe.forwards.checks.batch_statistics import Statistics
from pytest_evalmode.observe.forwards.checks.check import Question, Scene
from pytest_evalmode.observe.forwards.checks.hook_changes import OwnHooks
from pytest_evalmode.observe.forwards.checks.input_changes import InputChanges, hold
from pytest_evalmode.observe.forwards.checks.random_draws import Draws, HostDraws
from pytest_evalmode.observe.forwards.checks.training_mode import Modes
from pytest_evalmode.observe.forwards.checks.unregistered import Unregistered
from pytest_evalmode.observe.forwards.context import RAISED, Outermost
from pytest_evalmode.observe.forwards.tree_cache import Counted, Trees
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.observer_errors import Failures
from pytest_evalmode.observe.patches import Method, Wrapped
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import Sites
from pytest_evalmode.trace import ForwardCall

QUESTIONS: tuple[type[Question], ...] = (Modes, Statistics, Autograd, Draws)
STRICT: tuple[type[Question], ...] = (Unregistered, InputChanges, AttributeChanges, OwnHooks, HostDraws)
"""Those of the strict rules.  The first that are asked explain what later ones see."""

_SAMPLE = 64
"""Of so many parts one is timed."""


class Running(threading.local):
    """The outermost forward that this thread is in."""

    outermost: Outermost | None = None


class Forwards:
    """Observes the forwards of a window, and adds the models that run to its watch."""

    def __init__(
        self, watch: Watch, sites: Sites, switches: Switches, events: Events | None = None, *, strict: bool = False
    ) -> None:
        self.failures = Failures()
        self.seconds = 0.0
        """What it cost to watch; of the parts, which are many and short, it is found out by samples."""
        self.ran = 0
        """Outermost forwards of what may be a model: one that is quantised has no parameters."""
        self._calls: dict[ForwardCall, Counted] = {}
        self._lock = threading.Lock()
        self._events = events
        self._scene = Scene(watch, sites, switches, strict)
        self._kinds = (*QUESTIONS, *STRICT) if strict else QUESTIONS
        self._entering, self._leaving = (_who_has(self._kinds, verb) for verb in ("enter", "leave"))
        self._drawing = (self._kinds.index(Draws),)
        """Of a settled part that may draw no more is asked."""
        self._running = Running()
        self._trees = Trees()
        self._parts = 0

    def take(self) -> tuple[ForwardCall, ...]:
        """The calls so far that have something to say; from now on they are counted anew."""
        with self._lock:
            calls, self._calls = self._calls, {}
        return tuple(replace(call, count=counted.count) for call, counted in calls.items())

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """A forward begins in the calling frame.  False if there is nothing to see of it; else `leave` must follow."""
        outermost, key = self._running.outermost, id(module)
        if (
            outermost is not None
            and key in outermost.quiet
            and not (is_grad_enabled() or module.__dict__.get("training"))
        ):
            return False
        asked = self._entering
        if outermost is None or key not in outermost.known:
            if not modules.is_built(module):
                return False
        elif key in outermost.settled and (outermost.recorded or not (outermost.grad or is_grad_enabled())):
            if key not in outermost.tree.drawing:
                return False
            asked = self._drawing
        frame = sys._getframe(1)
        weight = 1 if outermost is None else self._weight()
        began = perf_counter() if weight else 0.0
        try:
            if outermost is None or (key not in outermost.known and _is_handed_in(outermost, module)):
                inner = self._begin(module, args, kwargs, frame)
                if inner is None:
                    return False
                if outermost is not None:
                    for question in outermost.questions:
                        question.interrupt(frame)
                inner.around = outermost
                outermost = self._running.outermost = inner
                for question in inner.questions:
                    question.begin()
            elif key not in outermost.known:
                if callers.builds(frame):
                    return False
                if unregistered_modules.take_in(self._scene, outermost, module, frame):
                    self.ran += 1
            for which in asked:
                outermost.questions[which].enter(module, frame)
        except Exception as error:
            self.failures.append(error)
        finally:
            if weight:
                self.seconds += weight * (perf_counter() - began)
        return outermost is not None

    def leave(self, module: nn.Module, output: object) -> None:
        """A forward ends in the calling frame; `output` is RAISED if by an exception."""
        outermost = self._running.outermost
        assert outermost is not None
        frame = sys._getframe(1)
        whole = frame is outermost.frame
        weight = 1 if whole else self._weight()
        began = perf_counter() if weight else 0.0
        try:
            settled = outermost.recorded and id(module) in outermost.settled
            for which in self._drawing if settled else self._leaving:
                outermost.questions[which].leave(module, output, frame)
            if whole:
                self._end(outermost, output)
                if outermost.around is not None:
                    for question in outermost.around.questions:
                        question.resume()
        except Exception as error:
            self.failures.append(error)
        finally:
            if weight:
                self.seconds += weight * (perf_counter() - began)
        if whole:
            self._running.outermost = outermost.around
            outermost.questions.clear()  # they refer to it, too: what it was given would wait for the collector

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType
    ) -> Outermost | None:
        """Who runs, and what is to be asked of it; None where torch runs it to make something else of it."""
        watch, sites = self._scene.watch, self._scene.sites
        if is_tracing() or callers.builds(frame):  # type: ignore[no-untyped-call]
            return None
        owner, called = callers.owner(module, frame, sites)
        caller = sites.outside(called.f_back)
        if caller.tracing:
            return None
        model = watch.add(owner, read=False)
        if not caller.borrowed:
            watch.read(model)
        last = caller.test or caller.frame
        if last is not None:
            model.last = (last.f_code, last.f_lineno)
        if self._events is not None:
            self._events.ran(model)
        parts, tree = self._trees.of(module)
        grad = is_grad_enabled()
        with self._lock:
            model.forwards += model.is_model
            self.ran += model.is_model or len(parts) > 1
        outermost = Outermost(
            watch=watch,
            model=model,
            owner=owner,
            ran=module,
            frame=frame,
            called=model.last,
            through=(caller.frame.f_code, caller.frame.f_lineno) if caller.frame and caller.test else None,
            cause=sites.inside(frame.f_back, called.f_back) if owner is not module else None,
            parts=parts,
            tree=tree,
            inputs=(args, kwargs),
            grad=grad,
            known=tree.known,
            quiet=frozenset() if grad else tree.quiet,
        )
        if model.is_unfinished():
            outermost.lazy = frozenset(id(part) for part in parts if modules.is_unfinished(part))
            outermost.quiet -= outermost.lazy
        outermost.questions = [kind(self._scene, outermost) for kind in self._kinds]
        return outermost

    def _end(self, outermost: Outermost, output: object) -> None:
        watch, module = self._scene.watch, outermost.ran
        facts: dict[str, Any] = {}
        for question in outermost.questions:
            for name, found in question.end(output).items():
                facts[name] = facts[name] + found if facts.get(name) else found
        watch.finish_lazy(outermost.model)
        if not any(facts.values()):
            return
        owner, tree = outermost.owner, outermost.tree
        whole = outermost.parts if owner is module else modules.tree(owner)
        facts["ran"] = outermost.part(owner)
        facts["by"] = None if owner is module else outermost.part(module)
        facts["modules"] = len(whole) + len(outermost.guests)
        said = outermost.called, outermost.through, facts
        with self._lock:
            last = tree.counted
            if last is None or last[0] is not self._calls or last[1] != said:
                at, through = (self._scene.sites.site(*line) if line else None for line in said[:2])
                counted = self._calls.setdefault(ForwardCall(at=at, through=through, **facts), Counted())
                last = tree.counted = self._calls, said, counted
            last[2].count += 1

    def _weight(self) -> int:
        """For how many parts this one is to be timed, if it is."""
        self._parts += 1
        return 0 if self._parts % _SAMPLE else _SAMPLE


def _who_has(kinds: tuple[type[Question], ...], verb: str) -> tuple[int, ...]:
    """Which questions have a verb of their own."""
    of = attrgetter(verb)
    return tuple(i for i, kind in enumerate(kinds) if of(kind) is not of(Question))


def _is_handed_in(outermost: Outermost, module: nn.Module) -> bool:
    """Whether a model that begins to run was an argument of the outermost forward, no part of it."""
    return any(map(modules.holds_parameters, modules.tree(module))) and hold(*outermost.inputs, module)


calls: Wrapped[Forwards] = Wrapped("__call__")


@calls.by
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    if is_compiling():
        return calls.original(self, *args, **kwargs)
    entered: list[Forwards] | None = None
    output: object = RAISED
    try:
        for observer in calls.observers:
            if observer.enter(self, args, kwargs):
                entered = [observer] if entered is None else [observer, *entered]
        output = calls.original(self, *args, **kwargs)
        return output
    finally:
        if entered is not None:  # most forwards have nothing to see
            for observer in entered:
                observer.leave(self, output)


def observing(call: Method, by: Wrapped[Forwards] = calls) -> Method:
    """The same in the place of a `__call__` with which a class replaces that of `nn.Module`."""

    @wraps(call)
    def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if is_compiling():
            return call(self, *args, **kwargs)
        entered: list[Forwards] = []
        output: object = RAISED
        try:
            for observer in by.observers:
                if observer.enter(self, args, kwargs):
                    entered.insert(0, observer)
            output = call(self, *args, **kwargs)
            return output
        finally:
            for observer in entered:
                observer.leave(self, output)

    return _observed
