"""Observer of every forward of an `nn.Module`, on any thread: `nn.Module.__call__` is patched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from operator import attrgetter
from time import perf_counter
from types import FrameType
from typing import Any

from torch import is_grad_enabled, nn
from torch.compiler import is_compiling

from pytest_evalmode import forks
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.calls.timeline import Timeline
from pytest_evalmode.observe.forwards import model_expressions, unregistered_modules
from pytest_evalmode.observe.forwards.checks.attribute_changes import AttributeChangeCheck
from pytest_evalmode.observe.forwards.checks.autograd import AutogradCheck
from pytest_evalmode.observe.forwards.checks.batch_statistics import BatchStatisticsCheck
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.checks.hook_changes import HookChangeCheck
from pytest_evalmode.observe.forwards.checks.input_changes import InputChangeCheck, contains_module
from pytest_evalmode.observe.forwards.checks.random_draws import RandomDrawCheck
from pytest_evalmode.observe.forwards.checks.training_mode import TrainingModeCheck
from pytest_evalmode.observe.forwards.checks.unregistered import UnregisteredModuleCheck
from pytest_evalmode.observe.forwards.context import RAISED, CheckContext, ForwardContext
from pytest_evalmode.observe.forwards.tree_cache import GRAPH_TYPES, TreeCache, TreeInfo
from pytest_evalmode.observe.models.mode_dependence import is_mode_dependent
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer, Patch, module_call
from pytest_evalmode.observe.private_api import is_tracing
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import ForwardCall

DEFAULT_CHECKS: tuple[type[ForwardCheck], ...] = (
    TrainingModeCheck,
    BatchStatisticsCheck,
    AutogradCheck,
    RandomDrawCheck,
)
"""Checks of the default rules.  `TrainingModeCheck` comes first: what it reports explains what others see."""
STRICT_CHECKS: tuple[type[ForwardCheck], ...] = (
    UnregisteredModuleCheck,
    InputChangeCheck,
    AttributeChangeCheck,
    HookChangeCheck,
)

_DRAW_ONLY = (DEFAULT_CHECKS.index(RandomDrawCheck),)
"""The only check that a settled module needs."""


class _Running:
    """An outermost forward in progress and its checks."""

    def __init__(
        self, forward: ForwardContext, check_types: tuple[type[ForwardCheck], ...], enclosing: _Running | None
    ):
        self.forward = forward
        self.enclosing = enclosing
        """The forward to which this model was passed as an argument."""
        self.checks = [check_type(forward) for check_type in check_types]
        for check in self.checks:
            check.begin()
        self.autograd = next(check for check in self.checks if isinstance(check, AutogradCheck))
        self.settled = next(check.settled for check in self.checks if isinstance(check, TrainingModeCheck))
        """Modules in training mode, only checked for random draws once nothing more can be known of autograd."""
        unskippable = forward.lazy.union(*(check.unskippable for check in self.checks))
        self.skippable = forward.tree.skippable - unskippable if unskippable else forward.tree.skippable
        """Modules that need no check then while they are in eval mode."""


class _ThreadState(threading.local):
    """What is in progress on the current thread."""

    running: _Running | None = None
    """The innermost forward."""
    is_ignoring = False
    """Whether torch runs a module to build something: neither that nor what it runs is a forward."""


class ForwardObserver(Observer):
    """Observer of the forwards of one window; adds the models that run to the window's `Watch`."""

    patched = (module_call,)

    def __init__(
        self,
        watch: Watch,
        user_lines: UserLines,
        mode_changes: ModeChanges,
        timeline: Timeline | None = None,
        *,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.seconds = 0.0
        """Time spent when outermost forwards start and end; that for inner modules is not measured."""
        self.forward_count = 0
        """Outermost forwards of modules that may be models; a quantized model has no parameters."""
        self._calls: dict[ForwardCall, list[int]] = {}
        """The forwards in which a check found something, and how often, as a list of one number."""
        self._lock = forks.new_lock(self)
        self._timeline = timeline
        self._context = CheckContext(watch, user_lines, mode_changes, strict)
        self._check_types = (*DEFAULT_CHECKS, *STRICT_CHECKS) if strict else DEFAULT_CHECKS
        self._enter_checks, self._leave_checks = (_overriding(self._check_types, name) for name in ("enter", "leave"))
        self._thread = _ThreadState()
        self._trees = TreeCache()

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        """Return the forwards observed so far in which a check found something, and forget them."""
        with self._lock:
            calls, self._calls = self._calls, {}
        return tuple(replace(call, count=count) for call, (count,) in calls.items())

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Note that a forward starts in the calling frame; if this returns True, `leave` must follow."""
        running, key = self._thread.running, id(module)
        checks, is_new = self._enter_checks, running is None
        if running is not None:
            is_known = running.autograd.inner is not None or not (running.forward.grad_enabled or is_grad_enabled())
            # Most forwards of inner modules end here: nothing can be wrong with a skippable module in eval mode.
            if is_known and key in running.skippable and not module.__dict__.get("training"):
                return False
            if is_known and key in running.settled:
                if key not in running.forward.tree.may_draw:
                    return False
                checks = _DRAW_ONLY
            else:
                is_new = not running.forward.includes(key)
        if is_new and (self._thread.is_ignoring or not modules.is_initialized(module)):
            return False
        frame, start = sys._getframe(1), perf_counter() if is_new else 0.0
        try:
            if is_new and not self._add(module, args, kwargs, frame):
                return self._thread.is_ignoring
            running = self._thread.running
            assert running is not None
            for i in checks:
                running.checks[i].enter(module, frame)
        except Exception as error:
            self.errors.append(error)
        finally:
            if is_new:
                self.seconds += perf_counter() - start
        return self._thread.running is not None

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that a forward ends in the calling frame; `output` is `RAISED` if it raised an exception."""
        running, frame = self._thread.running, sys._getframe(1)
        if running is None:  # the module that `enter` began to ignore
            self._thread.is_ignoring = False
            return
        is_root = frame is running.forward.frame
        start = perf_counter() if is_root else 0.0
        try:
            is_settled = id(module) in running.settled and running.autograd.inner is not None
            for i in _DRAW_ONLY if is_settled else self._leave_checks:
                running.checks[i].leave(module, output, frame)
            if is_root:
                self._close(running, output)
        except Exception as error:
            self.errors.append(error)
        finally:
            if is_root:
                self._thread.running = running.enclosing
                self.seconds += perf_counter() - start

    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType) -> bool:
        """Start to observe an outermost forward, or a module that was not a submodule when that started.

        Return False if torch runs the module to build something, such as a graph or a parametrized weight, or to
        initialize another.
        """
        running = self._thread.running
        if callers.is_inside_init(frame):
            return False
        # A model that was passed as an argument is not a part of the current forward: it gets its own context.
        if running is None or _is_model_argument(running.forward, module):
            forward = self._open(module, args, kwargs, frame)
            if forward is None:
                self._thread.is_ignoring = running is None
                return False
            for check in () if running is None else running.checks:
                check.interrupt(frame)
            self._thread.running = _Running(forward, self._check_types, running)
        else:
            arrival = unregistered_modules.add_late_module(running.forward, module, frame)
            self.forward_count += arrival.is_model
            for check in running.checks:
                check.add_modules(arrival)
        return True

    def _open(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType
    ) -> ForwardContext | None:
        """Create the context of an outermost forward; None if torch runs it to build something."""
        watch, user_lines = self._context.watch, self._context.user_lines
        if is_tracing():
            return None
        owner, owner_frame = callers.find_calling_model(module, frame, user_lines)
        parts, tree = self._trees.look_up(module)
        if owner is not module and _computes_weight(parts, tree) and callers.is_in_property(frame, owner_frame):
            # A property may compute a weight: `softplus(self.raw_scale)` is not a forward of the model.
            owner, owner_frame = module, frame
        caller = user_lines.find_caller(owner_frame.f_back)
        if caller.by_tracer or (owner is not module and user_lines.find_caller(frame.f_back).by_tracer):
            return None
        model = watch.add(owner, read=False)
        seen_late = model.snapshot is None
        if not caller.by_functional_call:  # during that, the model's tensors are replaced by others
            watch.read(model)
            if model.first_forward == "pending":
                model.seen_late, model.first_call = seen_late, caller.line
                watch.date_changes(model)
        model.last_call = caller.line or model.last_call
        if self._timeline is not None:
            self._timeline.add_forward(model)
        with self._lock:
            model.forwards += model.is_model
            self.forward_count += model.is_model or len(parts) > 1
        is_lazy = model.has_uninitialized()
        return ForwardContext(
            window=self._context,
            model=model,
            owner=owner,
            root=module,
            frame=frame,
            owner_frame=owner_frame,
            call_line=model.last_call,
            innermost_line=(caller.frame.f_code, caller.frame.f_lineno) if caller.frame and caller.test_frame else None,
            cause=user_lines.find_line(frame.f_back, owner_frame.f_back) if owner is not module else None,
            parts=parts,
            tree=tree,
            inputs=(args, kwargs),
            grad_enabled=is_grad_enabled(),
            lazy=frozenset(id(part) for part in parts if modules.has_lazy_tensors(part)) if is_lazy else frozenset(),
            late_modules={},
            grad_flags=[],
            training={},
        )

    def _close(self, running: _Running, output: object) -> None:
        """Collect what the checks found, and count the forward if that is anything."""
        forward = running.forward
        fields: dict[str, Any] = {}
        for check in running.checks:
            for name, value in check.end(output).items():
                fields[name] = fields[name] + value if fields.get(name) and value else fields.get(name) or value
        self._context.watch.read_initialized(forward.model)
        if forward.model.first_forward == "running":
            self._context.watch.date_changes(forward.model)
        if any(fields.values()):
            owner, root, lines = forward.owner, forward.root, (forward.call_line, forward.innermost_line)
            fields["ran"] = forward.module_info(owner)
            fields["by"] = None if owner is root else forward.module_info(root)
            fields["all_training"] = bool(fields["training"] and modules.training_flag(owner))
            with self._lock:
                # A model often runs many times with the same result: then its last call is counted, not hashed again.
                calls, *last, count = forward.tree.caches.get(ForwardObserver, (None, None))
                if calls is not self._calls or last != [lines, fields]:
                    at, through = (self._context.user_lines.site(*line) if line else None for line in lines)
                    expression = ""
                    if fields["training"]:
                        caller = self._context.user_lines.find_caller(forward.owner_frame.f_back)
                        path = fields["ran"].suffix
                        expression = model_expressions.find_expression(owner, forward.model, path, caller)
                    parts = forward.parts if owner is root else modules.all_modules(owner)
                    size = len(parts) + sum(late.path is not None for late in forward.late_modules.values())
                    call = ForwardCall(at=at, through=through, expression=expression, modules=size, **fields)
                    count = self._calls.setdefault(call, [0])
                    forward.tree.caches[ForwardObserver] = self._calls, lines, fields, count
                count[0] += 1
        for check in running.enclosing.checks if running.enclosing is not None else ():
            check.resume()


@cache
def _overriding(check_types: tuple[type[ForwardCheck], ...], name: str) -> tuple[int, ...]:
    """Return the indices of the checks that override a method."""
    method = attrgetter(name)
    return tuple(i for i, check_type in enumerate(check_types) if method(check_type) is not method(ForwardCheck))


def _computes_weight(parts: list[nn.Module], tree: TreeInfo) -> bool:
    """Return whether a module may only compute a weight: it draws nothing, has no tensors and ignores the mode."""
    if tree.may_draw or any(map(modules.own_tensors, parts)):
        return False
    return not any(isinstance(part, GRAPH_TYPES) or is_mode_dependent(part) for part in parts)


def _is_model_argument(forward: ForwardContext, module: nn.Module) -> bool:
    """Return whether a module has parameters and is among the arguments of the forward."""
    has_parameters = any(map(modules.has_own_parameters, modules.all_modules(module)))
    return has_parameters and contains_module(*forward.inputs, module)


@module_call.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    if is_compiling():
        return module_call.original(self, *args, **kwargs)
    entered: list[ForwardObserver] | None = None
    output: object = RAISED
    try:
        for observer in module_call.observers:
            if observer.enter(self, args, kwargs):
                entered = [observer] if entered is None else [observer, *entered]
        output = module_call.original(self, *args, **kwargs)
        return output
    finally:
        if entered is not None:  # no list is made for the many forwards that are skipped
            for observer in entered:
                observer.leave(self, output)


def observe_calls(patch: Patch) -> None:
    """Let the patch of a class's own `__call__` report to the observers of `nn.Module.__call__`.

    The code is that of `_observed` above, which cannot be shared: it must not have a closure (see `Patch`).
    """

    @patch.replace_with
    def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if is_compiling():
            return patch.original(self, *args, **kwargs)
        entered: list[ForwardObserver] = []
        output: object = RAISED
        try:
            for observer in module_call.observers:
                if observer.enter(self, args, kwargs):
                    entered.insert(0, observer)
            output = patch.original(self, *args, **kwargs)
            return output
        finally:
            for observer in entered:
                observer.leave(self, output)
