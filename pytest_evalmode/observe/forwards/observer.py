"""Observer of every forward of an `nn.Module`, on any thread.

It patches `nn.Module.__call__` while a window is open.  Torch's global forward hooks are not used: they miss forwards
that end in a BaseException, and they interfere with `torch.compile` and `torch.export`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from time import perf_counter
from types import FrameType
from typing import Any

from torch import is_grad_enabled, nn
from torch.compiler import is_compiling
from torch.jit import is_tracing  # type: ignore[attr-defined]

from pytest_evalmode.observe import forks, modules
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
from pytest_evalmode.observe.patches import Observer, Patch, module_call
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
"""Checks of the strict rules.  The order matters: checks read what earlier ones have found."""

_SAMPLE_EVERY = 64
"""One in this many forwards of inner modules is timed."""


class _ThreadState(threading.local):
    """The innermost forward context that is open on the current thread."""

    forward: ForwardContext | None = None


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
        """Time spent in this observer; for the many short forwards of inner modules an estimate from samples."""
        self.forward_count = 0
        """Outermost forwards of modules that may be models; a quantized model has no parameters."""
        self._calls: dict[ForwardCall, CallCount] = {}
        self._lock = forks.new_lock(self)
        self._timeline = timeline
        self._context = CheckContext(watch, user_lines, mode_changes, strict)
        self._check_types = (*DEFAULT_CHECKS, *STRICT_CHECKS) if strict else DEFAULT_CHECKS
        self._enter_checks, self._leave_checks = (_overriding(self._check_types, name) for name in ("enter", "leave"))
        self._draw_check = (self._check_types.index(RandomDrawCheck),)
        """The only check that a settled module needs."""
        self._thread = _ThreadState()
        self._trees = TreeCache()
        self._inner_forwards = 0

    def pop_calls(self) -> tuple[ForwardCall, ...]:
        """Return the forwards observed so far in which a check found something, and forget them."""
        with self._lock:
            calls, self._calls = self._calls, {}
        return tuple(replace(call, count=call_count.count) for call, call_count in calls.items())

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Note that a forward starts in the calling frame; if this returns True, `leave` must follow."""
        forward, key = self._thread.forward, id(module)
        # Most forwards of inner modules end here: nothing can be wrong with a skippable module in eval mode.
        if (
            forward is not None
            and key in forward.skippable
            and not (is_grad_enabled() or module.__dict__.get("training"))
        ):
            return False
        checks = self._enter_checks
        if forward is None or key not in forward.module_ids:
            if not modules.is_initialized(module):
                return False
        elif key in forward.settled and (forward.autograd_recorded or not (forward.grad_enabled or is_grad_enabled())):
            if key not in forward.tree.may_draw:
                return False
            checks = self._draw_check
        frame = sys._getframe(1)
        weight = 1 if forward is None else self._sample_weight()
        start = perf_counter() if weight else 0.0
        try:
            if forward is None or (key not in forward.module_ids and _is_model_argument(forward, module)):
                # A model that was passed as an argument is not a part of the current forward: it gets its own context.
                inner = self._open(module, args, kwargs, frame)
                if inner is None:
                    return False
                if forward is not None:
                    for check in forward.checks:
                        check.interrupt(frame)
                inner.enclosing = forward
                forward = self._thread.forward = inner
                for check in inner.checks:
                    check.begin()
            elif key not in forward.module_ids:
                if callers.is_inside_init(frame):
                    return False
                if unregistered_modules.note_unregistered_module(self._context, forward, module, frame):
                    self.forward_count += 1
            for i in checks:
                forward.checks[i].enter(module, frame)
        except Exception as error:
            self.errors.append(error)
        finally:
            if weight:
                self.seconds += weight * (perf_counter() - start)
        return forward is not None

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that a forward ends in the calling frame; `output` is `RAISED` if it raised an exception."""
        forward = self._thread.forward
        assert forward is not None
        frame = sys._getframe(1)
        is_root = frame is forward.frame
        weight = 1 if is_root else self._sample_weight()
        start = perf_counter() if weight else 0.0
        try:
            is_settled = forward.autograd_recorded and id(module) in forward.settled
            for i in self._draw_check if is_settled else self._leave_checks:
                forward.checks[i].leave(module, output, frame)
            if is_root:
                self._close(forward, output)
                if forward.enclosing is not None:
                    for check in forward.enclosing.checks:
                        check.resume()
        except Exception as error:
            self.errors.append(error)
        finally:
            if weight:
                self.seconds += weight * (perf_counter() - start)
        if is_root:
            self._thread.forward = forward.enclosing
            # Break the reference cycle, or the inputs would stay alive until the garbage collector runs.
            forward.checks.clear()

    def _open(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType
    ) -> ForwardContext | None:
        """Create the context of an outermost forward; None if torch runs it to build something, such as a graph."""
        watch, user_lines = self._context.watch, self._context.user_lines
        if is_tracing() or callers.is_inside_init(frame):  # type: ignore[no-untyped-call]
            return None
        owner, owner_frame = callers.find_calling_model(module, frame, user_lines)
        caller = user_lines.find_caller(owner_frame.f_back)
        if caller.by_tracer:
            return None
        model = watch.add(owner, read=False)
        if not caller.by_functional_call:  # during that, the model's tensors are replaced by others
            watch.read(model)
        call_frame = caller.test_frame or caller.frame
        if call_frame is not None:
            model.last_call = (call_frame.f_code, call_frame.f_lineno)
        if self._timeline is not None:
            self._timeline.add_forward(model)
        parts, tree = self._trees.look_up(module)
        grad_enabled = is_grad_enabled()
        with self._lock:
            model.forwards += model.is_model
            self.forward_count += model.is_model or len(parts) > 1
        forward = ForwardContext(
            watch=watch,
            model=model,
            owner=owner,
            root=module,
            frame=frame,
            call_line=model.last_call,
            innermost_line=(caller.frame.f_code, caller.frame.f_lineno) if caller.frame and caller.test_frame else None,
            cause=user_lines.find_line_inside(frame.f_back, owner_frame.f_back) if owner is not module else None,
            parts=parts,
            tree=tree,
            inputs=(args, kwargs),
            grad_enabled=grad_enabled,
            module_ids=tree.module_ids,
            skippable=frozenset() if grad_enabled else tree.skippable,
        )
        if model.has_uninitialized():
            forward.lazy = frozenset(id(part) for part in parts if modules.has_lazy_tensors(part))
            forward.skippable -= forward.lazy
        forward.checks = [check_type(self._context, forward) for check_type in self._check_types]
        return forward

    def _close(self, forward: ForwardContext, output: object) -> None:
        """Collect the results of the checks, and count the forward if there are any."""
        watch, root = self._context.watch, forward.root
        fields: dict[str, Any] = {}
        for check in forward.checks:
            for name, value in check.end(output).items():
                fields[name] = fields[name] + value if fields.get(name) else value
        watch.read_initialized(forward.model)
        if not any(fields.values()):
            return
        owner, tree = forward.owner, forward.tree
        owner_parts = forward.parts if owner is root else modules.all_modules(owner)
        fields["ran"] = forward.module_info(owner)
        fields["by"] = None if owner is root else forward.module_info(root)
        fields["modules"] = len(owner_parts) + len(forward.unregistered_paths)
        content = forward.call_line, forward.innermost_line, fields
        with self._lock:
            # A model often runs many times with the same result: then its last call is counted, not built and hashed.
            last = tree.last_call
            if last is None or last[0] is not self._calls or last[1] != content:
                at, through = (self._context.user_lines.site(*line) if line else None for line in content[:2])
                call_count = self._calls.setdefault(ForwardCall(at=at, through=through, **fields), CallCount())
                last = tree.last_call = self._calls, content, call_count
            last[2].count += 1

    def _sample_weight(self) -> int:
        """Return how many inner forwards this one represents in the timing; 0 if it is not timed."""
        self._inner_forwards += 1
        return 0 if self._inner_forwards % _SAMPLE_EVERY else _SAMPLE_EVERY


def _overriding(check_types: tuple[type[ForwardCheck], ...], name: str) -> tuple[int, ...]:
    """Return the indices of the checks that override a method."""
    method = attrgetter(name)
    return tuple(i for i, check_type in enumerate(check_types) if method(check_type) is not method(ForwardCheck))


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


def observe_calls(patch: Patch, observed_by: Patch = module_call) -> None:
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
            for observer in observed_by.observers:
                if observer.enter(self, args, kwargs):
                    entered.insert(0, observer)
            output = patch.original(self, *args, **kwargs)
            return output
        finally:
            for observer in entered:
                observer.leave(self, output)
