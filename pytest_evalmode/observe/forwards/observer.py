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
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.calls.timeline import Timeline
from pytest_evalmode.observe.forwards import unregistered_modules
from pytest_evalmode.observe.forwards.checks.attribute_changes import AttributeChangeCheck
from pytest_evalmode.observe.forwards.checks.autograd import AutogradCheck
from pytest_evalmode.observe.forwards.checks.batch_statistics import BatchStatisticsCheck
from pytest_evalmode.observe.forwards.checks.check import CheckContext, ForwardCheck
from pytest_evalmode.observe.forwards.checks.hook_changes import HookChangeCheck
from pytest_evalmode.observe.forwards.checks.input_changes import InputChangeCheck, contains_module
from pytest_evalmode.observe.forwards.checks.random_draws import HostRandomDrawCheck, RandomDrawCheck
from pytest_evalmode.observe.forwards.checks.training_mode import TrainingModeCheck
from pytest_evalmode.observe.forwards.checks.unregistered import UnregisteredModuleCheck
from pytest_evalmode.observe.forwards.context import RAISED, ForwardContext
from pytest_evalmode.observe.forwards.tree_cache import CallCount, TreeCache
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Method, Patch
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ForwardCall

DEFAULT_CHECKS: tuple[type[ForwardCheck], ...] = (
    TrainingModeCheck,
    BatchStatisticsCheck,
    AutogradCheck,
    RandomDrawCheck,
)
STRICT_CHECKS: tuple[type[ForwardCheck], ...] = (
    UnregisteredModuleCheck,
    InputChangeCheck,
    AttributeChangeCheck,
    HookChangeCheck,
    HostRandomDrawCheck,
)
"""Those of the strict rules.  The first that are asked explain what later ones see."""

_SAMPLE = 64
"""Of so many parts one is timed."""


class Running(threading.local):
    """The outermost forward that this thread is in."""

    outermost: ForwardContext | None = None


class ForwardObserver:
    """Observes the forwards of a window, and adds the models that run to its watch."""

    def __init__(
        self,
        watch: Watch,
        sites: UserLines,
        mode_changes: ModeChanges,
        timeline: Timeline | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.failures = ObserverErrors()
        self.seconds = 0.0
        """What it cost to watch; of the parts, which are many and short, it is found out by samples."""
        self.forward_count = 0
        """Outermost forwards of what may be a model: one that is quantised has no parameters."""
        self._calls: dict[ForwardCall, CallCount] = {}
        self._lock = threading.Lock()
        self._events = timeline
        self._scene = CheckContext(watch, sites, mode_changes, strict)
        self._kinds = (*DEFAULT_CHECKS, *STRICT_CHECKS) if strict else DEFAULT_CHECKS
        self._entering, self._leaving = (_who_has(self._kinds, verb) for verb in ("enter", "leave"))
        self._drawing = (self._kinds.index(RandomDrawCheck),)
        """Of a settled part that may draw no more is asked."""
        self._running = Running()
        self._trees = TreeCache()
        self._parts = 0

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        """The calls so far that have something to say; from now on they are counted anew."""
        with self._lock:
            calls, self._calls = self._calls, {}
        return tuple(replace(call, count=counted.count) for call, counted in calls.items())

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """A forward begins in the calling frame.  False if there is nothing to see of it; else `leave` must follow."""
        outermost, key = self._running.outermost, id(module)
        if (
            outermost is not None
            and key in outermost.skippable
            and not (is_grad_enabled() or module.__dict__.get("training"))
        ):
            return False
        asked = self._entering
        if outermost is None or key not in outermost.module_ids:
            if not modules.is_initialized(module):
                return False
        elif key in outermost.settled and (
            outermost.autograd_recorded or not (outermost.grad_enabled or is_grad_enabled())
        ):
            if key not in outermost.tree.may_draw:
                return False
            asked = self._drawing
        frame = sys._getframe(1)
        weight = 1 if outermost is None else self._weight()
        began = perf_counter() if weight else 0.0
        try:
            if outermost is None or (key not in outermost.module_ids and _is_handed_in(outermost, module)):
                inner = self._begin(module, args, kwargs, frame)
                if inner is None:
                    return False
                if outermost is not None:
                    for question in outermost.checks:
                        question.interrupt(frame)
                inner.enclosing = outermost
                outermost = self._running.outermost = inner
                for question in inner.checks:
                    question.begin()
            elif key not in outermost.module_ids:
                if callers.is_inside_init(frame):
                    return False
                if unregistered_modules.note_unregistered_module(self._scene, outermost, module, frame):
                    self.forward_count += 1
            for which in asked:
                outermost.checks[which].enter(module, frame)
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
            settled = outermost.autograd_recorded and id(module) in outermost.settled
            for which in self._drawing if settled else self._leaving:
                outermost.checks[which].leave(module, output, frame)
            if whole:
                self._end(outermost, output)
                if outermost.enclosing is not None:
                    for question in outermost.enclosing.checks:
                        question.resume()
        except Exception as error:
            self.failures.append(error)
        finally:
            if weight:
                self.seconds += weight * (perf_counter() - began)
        if whole:
            self._running.outermost = outermost.enclosing
            outermost.checks.clear()  # they refer to it, too: what it was given would wait for the collector

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType
    ) -> ForwardContext | None:
        """Who runs, and what is to be asked of it; None where torch runs it to make something else of it."""
        watch, sites = self._scene.watch, self._scene.sites
        if is_tracing() or callers.is_inside_init(frame):  # type: ignore[no-untyped-call]
            return None
        owner, called = callers.find_calling_model(module, frame, sites)
        caller = sites.find_caller(called.f_back)
        if caller.by_tracer:
            return None
        model = watch.add(owner, read=False)
        if not caller.by_functional_call:
            watch.read(model)
        last = caller.test_frame or caller.frame
        if last is not None:
            model.last_call = (last.f_code, last.f_lineno)
        if self._events is not None:
            self._events.add_forward(model)
        parts, tree = self._trees.look_up(module)
        grad = is_grad_enabled()
        with self._lock:
            model.forwards += model.is_model
            self.forward_count += model.is_model or len(parts) > 1
        outermost = ForwardContext(
            watch=watch,
            model=model,
            owner=owner,
            root=module,
            frame=frame,
            call_line=model.last_call,
            innermost_line=(caller.frame.f_code, caller.frame.f_lineno) if caller.frame and caller.test_frame else None,
            cause=sites.find_line_inside(frame.f_back, called.f_back) if owner is not module else None,
            parts=parts,
            tree=tree,
            inputs=(args, kwargs),
            grad_enabled=grad,
            module_ids=tree.module_ids,
            skippable=frozenset() if grad else tree.skippable,
        )
        if model.has_uninitialized():
            outermost.lazy = frozenset(id(part) for part in parts if modules.has_lazy_tensors(part))
            outermost.skippable -= outermost.lazy
        outermost.checks = [kind(self._scene, outermost) for kind in self._kinds]
        return outermost

    def _end(self, outermost: ForwardContext, output: object) -> None:
        watch, module = self._scene.watch, outermost.root
        facts: dict[str, Any] = {}
        for question in outermost.checks:
            for name, found in question.end(output).items():
                facts[name] = facts[name] + found if facts.get(name) else found
        watch.read_initialized(outermost.model)
        if not any(facts.values()):
            return
        owner, tree = outermost.owner, outermost.tree
        whole = outermost.parts if owner is module else modules.all_modules(owner)
        facts["ran"] = outermost.part(owner)
        facts["by"] = None if owner is module else outermost.part(module)
        facts["modules"] = len(whole) + len(outermost.unregistered_paths)
        said = outermost.call_line, outermost.innermost_line, facts
        with self._lock:
            last = tree.last_call
            if last is None or last[0] is not self._calls or last[1] != said:
                at, through = (self._scene.sites.site(*line) if line else None for line in said[:2])
                counted = self._calls.setdefault(ForwardCall(at=at, through=through, **facts), CallCount())
                last = tree.last_call = self._calls, said, counted
            last[2].count += 1

    def _weight(self) -> int:
        """For how many parts this one is to be timed, if it is."""
        self._parts += 1
        return 0 if self._parts % _SAMPLE else _SAMPLE


def _who_has(kinds: tuple[type[ForwardCheck], ...], verb: str) -> tuple[int, ...]:
    """Which questions have a verb of their own."""
    of = attrgetter(verb)
    return tuple(i for i, kind in enumerate(kinds) if of(kind) is not of(ForwardCheck))


def _is_handed_in(outermost: ForwardContext, module: nn.Module) -> bool:
    """Whether a model that begins to run was an argument of the outermost forward, no part of it."""
    return any(map(modules.has_own_parameters, modules.all_modules(module))) and contains_module(
        *outermost.inputs, module
    )


call_patch: Patch[ForwardObserver] = Patch("__call__")


@call_patch.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    if is_compiling():
        return call_patch.original(self, *args, **kwargs)
    entered: list[ForwardObserver] | None = None
    output: object = RAISED
    try:
        for observer in call_patch.observers:
            if observer.enter(self, args, kwargs):
                entered = [observer] if entered is None else [observer, *entered]
        output = call_patch.original(self, *args, **kwargs)
        return output
    finally:
        if entered is not None:  # most forwards have nothing to see
            for observer in entered:
                observer.leave(self, output)


def wrap_call(call: Method, patch: Patch[ForwardObserver] = call_patch) -> Method:
    """The same in the place of a `__call__` with which a class replaces that of `nn.Module`."""

    @wraps(call)
    def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if is_compiling():
            return call(self, *args, **kwargs)
        entered: list[ForwardObserver] = []
        output: object = RAISED
        try:
            for observer in patch.observers:
                if observer.enter(self, args, kwargs):
                    entered.insert(0, observer)
            output = call(self, *args, **kwargs)
            return output
        finally:
            for observer in entered:
                observer.leave(self, output)

    return _observed
