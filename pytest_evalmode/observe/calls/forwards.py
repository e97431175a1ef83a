"""Every module's forward, on any thread -> ForwardCall.

`nn.Module.__call__` is wrapped while a window is open, as `torch.fx` wraps it while it traces, and put back after the
last one.  Torch's global hooks would be the other way.  They lose a forward that ends in a BaseException, and a model
that was compiled in place; they make `torch.compile(model)(x)` warn and `torch.export.export(strict=True)` fail; and a
model that was compiled while they were there is compiled again once they are gone.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from time import perf_counter
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.events import Events
from pytest_evalmode.observe.calls.outermost import Before, Outermost
from pytest_evalmode.observe.calls.questions import attributes, autograd, draws, inputs
from pytest_evalmode.observe.calls.switches import Switches
from pytest_evalmode.observe.failures import Failures
from pytest_evalmode.observe.models import find, modes
from pytest_evalmode.observe.models.watch import Model, Watch
from pytest_evalmode.observe.source import callers, code, graphs, holders
from pytest_evalmode.observe.source.code import Draw
from pytest_evalmode.observe.source.sites import Sites
from pytest_evalmode.observe.state import devices, generators, leaks
from pytest_evalmode.observe.state.fingerprint import is_tensor, undisturbed
from pytest_evalmode.observe.wrapped import Method, Wrapped
from pytest_evalmode.trace import Finding, ForwardCall, Part, Site

RAISED = object()
"""What came out of a forward that raised."""


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
        """What it cost to begin and to end outermost forwards; what runs for each part is too short to be timed."""
        self.ran = 0
        """Outermost forwards of what may be a model: one that is quantised has no parameters."""
        self._calls: Counter[ForwardCall] = Counter()
        self._lock = threading.Lock()
        self._watch = watch
        self._sites = sites
        self._switches = switches
        self._events = events
        self._strict = strict
        self._running = Running()
        self._held: dict[tuple[tuple[CodeType, int] | None, str, int], bool] = {}
        self._quiet_types: dict[type[nn.Module], bool] = {}

    def take(self) -> tuple[ForwardCall, ...]:
        """The calls so far that have something to say; from now on they are counted anew."""
        with self._lock:
            calls, self._calls = self._calls, Counter()
        return tuple(replace(call, count=count) for call, count in calls.items())

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """A forward begins in the calling frame.  False if there is nothing to see of it; else `leave` must follow."""
        outermost = self._running.outermost
        if not modules.is_built(module):
            return False
        if (
            outermost is not None
            and id(module) in outermost.quiet
            and not (outermost.grad or modules.mode(module) or is_grad_enabled())
        ):
            return False
        frame = sys._getframe(1)
        try:
            if outermost is None or _is_handed_in(outermost, module):
                if outermost is not None and draws.moved(outermost):
                    self._blame(outermost, callers.enclosing(frame), frame)
                began = perf_counter()
                inner = self._begin(module, args, kwargs, frame)
                self.seconds += perf_counter() - began
                if inner is None:
                    return False
                inner.around = outermost
                outermost = self._running.outermost = inner
            elif id(module) not in outermost.known:
                if callers.builds(frame):
                    return False
                self._visit(outermost, module, frame)
            self._enter_part(outermost, module, frame)
        except Exception as error:
            self.failures.append(error)
        return outermost is not None

    def leave(self, module: nn.Module, output: object) -> None:
        """A forward ends in the calling frame; `output` is RAISED if by an exception."""
        outermost = self._running.outermost
        assert outermost is not None
        frame = sys._getframe(1)
        try:
            self._leave_part(outermost, module, output, frame)
            if frame is outermost.frame:
                began = perf_counter()
                self._end(outermost, output)
                self.seconds += perf_counter() - began
                if outermost.around is not None:
                    outermost.around.state = generators.state()  # what was drawn so far has been told
        except Exception as error:
            self.failures.append(error)
        if frame is outermost.frame:
            self._running.outermost = outermost.around

    def _quiet(self, parts: list[nn.Module], kinds: set[type[nn.Module]]) -> set[int]:
        unknown = kinds.difference(self._quiet_types)
        if unknown:
            code.forget_replaced(unknown)
            self._quiet_types.update((kind, _is_quiet(kind)) for kind in unknown)
        # A pre-forward hook may set the mode of its module after all.
        return {id(part) for part in parts if self._quiet_types[type(part)] and not part._forward_pre_hooks}

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType
    ) -> Outermost | None:
        if is_tracing() or callers.builds(frame):  # type: ignore[no-untyped-call]
            return None
        owner, called = callers.owner(module, frame, self._sites)
        caller = self._sites.outside(called.f_back)
        if caller.tracing:
            return None
        model = self._watch.add(owner, read=False)
        if not caller.borrowed:
            self._watch.read(model)
        if caller.frame is not None:
            model.last = (caller.frame.f_code, caller.frame.f_lineno)
        if self._events is not None:
            self._events.ran(model)
        parts = modules.tree(module)
        kinds = set(map(type, parts))
        with self._lock:
            model.forwards += model.is_model
            self.ran += model.is_model or len(parts) > 1
        now = generators.state()
        outermost = Outermost(
            model=model,
            owner=owner,
            ran=module,
            frame=frame,
            called=model.last,
            known=set(map(id, parts)),
            newcomers=set(),
            quiet=self._quiet(parts, kinds),
            modules=len(parts) if owner is module else len(modules.tree(owner)),
            grad=is_grad_enabled(),
            start=now,
            state=now,
            inputs=(args, kwargs),
        )
        cause = self._sites.inside(frame.f_back, called.f_back) if owner is not module else None
        self._judge_modes(outermost, parts, cause)
        if outermost.training:
            outermost.quiet.difference_update(id(part) for part in parts if modules.is_opaque(part))
        if any(issubclass(kind, _GRAPHS) for kind in kinds):
            self._judge_graphs(outermost, parts)
        if model.before is not None and model.before.unfinished:
            outermost.lazy.update(id(part) for part in parts if modules.is_unfinished(part))
            outermost.quiet -= outermost.lazy
        batchers = _batchers(parts, kinds)
        if batchers:
            outermost.quiet.difference_update(map(id, batchers))
            self._judge_unseen(outermost, parts, batchers)
        if self._strict:
            captured = devices.is_capturing()  # nothing is computed then, so nothing changes
            with undisturbed():
                told = attributes.take(parts) if model.has_state and not captured else []
                given = [] if captured else inputs.take(args, kwargs)
                outermost.before = Before(given, told, generators.host_state(), leaks.hooks_of(parts))
        return outermost

    def _visit(self, outermost: Outermost, module: nn.Module, frame: FrameType) -> None:
        """A module that ran inside a model without being part of it: its state and modes are watched all the same."""
        now = set(map(id, modules.tree(outermost.ran)))
        outermost.newcomers |= now - outermost.known
        outermost.known |= now
        if id(module) in outermost.known:  # it has become one since the forward began
            self._judge_modes(outermost, modules.tree(module))
            return
        parts = modules.tree(module)
        outermost.known.update(map(id, parts))
        outermost.pinned += parts
        caller = callers.running(callers.enclosing(frame))
        where = self._part(outermost, caller)
        step = find.attribute_of(caller, module) or f"<{modules.type_name(module)}>"
        for path, part in modules.walk(module):
            outermost.guests[id(part)] = ".".join(filter(None, (where.path, step, path)))
        if any(map(modules.is_stateful, parts)):
            self._host(outermost, self._watch.add(module, f"{where.name}.{step}"), frame)
        cause = self._sites.inside(frame.f_back, outermost.frame)
        self._judge_modes(outermost, parts, cause, "it is no submodule: eval() cannot reach it")
        self._judge_graphs(outermost, parts)
        told = any(modules.is_stateful(part) or modes.is_sensitive(part) for part in parts)
        if self._strict and told and not graphs.is_exported(module):
            outermost.unregistered.append(Finding(self._part(outermost, module), cause))

    def _host(self, outermost: Outermost, guest: Model, frame: FrameType) -> None:
        """A model runs inside a forward that may be that of no model by itself."""
        caller = self._sites.outside(frame.f_back).frame
        if caller is not None:
            guest.last = (caller.f_code, caller.f_lineno)
        if guest.is_model:
            outermost.hosts_model = True
            with self._lock:
                guest.forwards += 1
                self.ran += 1

    def _judge_modes(
        self,
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
        excused = {id(p) for part in parts if graphs.is_exported(part) for p in modules.tree(part)}
        for part in suspects:
            if id(part) not in excused:
                depends = modes.is_sensitive(part) if sensitive is None else sensitive
                if depends or (modules.holds_weights(part) and id(part) not in outermost.newcomers):
                    named = replace(self._part(outermost, part), sensitive=depends)
                    found = Finding(named, cause, why, since=self._switches.line(part))
                    outermost.training.setdefault(id(part), found)

    def _judge_graphs(self, outermost: Outermost, parts: list[nn.Module]) -> None:
        inside: set[int] = set()
        for part in parts:
            if isinstance(part, _GRAPHS) and id(part) not in inside:
                inside.update(map(id, modules.tree(part)))
                if id(part) not in outermost.training:
                    for sentence in graphs.batch_norms(part):
                        outermost.batch_stats.setdefault(id(part), Finding(self._part(outermost, part), None, sentence))

    def _judge_unseen(self, outermost: Outermost, parts: list[nn.Module], batchers: list[_BatchNorm]) -> None:
        """Batch norms whose forward nobody will see run."""
        inside = {id(p) for part in parts if modules.is_opaque(part) for p in modules.tree(part)}
        for norm in batchers:
            if id(norm) in inside and not modules.mode(norm):
                self._note_batch_stats(outermost, norm, None)

    def _note_batch_stats(self, outermost: Outermost, norm: _BatchNorm, cause: Site | None) -> None:
        kept = getattr(norm, "track_running_stats", False)
        why = f"it has no running statistics ({'they were set to None' if kept else 'track_running_stats=False'})"
        outermost.batch_stats[id(norm)] = Finding(self._part(outermost, norm), cause, why)

    def _enter_part(self, outermost: Outermost, module: nn.Module, frame: FrameType) -> None:
        training = modules.mode(module)
        if training:
            self._enter_training(outermost, module, frame)
        elif isinstance(module, _BatchNorm) and _uses_the_batch(module) and id(module) not in outermost.batch_stats:
            self._note_batch_stats(outermost, module, self._sites.inside(frame.f_back, outermost.frame))
        if frame is not outermost.frame and draws.is_boundary(outermost, module):
            outermost.entered.add(id(module))
            if draws.moved(outermost):
                self._blame(outermost, callers.enclosing(frame), frame)

    def _leave_recording(self, outermost: Outermost, module: nn.Module) -> None:
        """Grad mode was on when the whole began: whether it still is where a part with parameters ran to its end."""
        if not is_grad_enabled():
            outermost.grad_stopped = True
            return
        held = modules.holds_parameters(module) if self._strict else autograd.is_trainable(module)
        if held and outermost.autograd is None and not code.traits(module).stops_grad:
            outermost.autograd = Finding(self._part(outermost, module), None)

    def _enter_training(self, outermost: Outermost, module: nn.Module, frame: FrameType) -> None:
        finding = outermost.training.get(id(module))
        if finding is None:
            self._judge_modes(outermost, [module])
            finding = outermost.training.get(id(module))
        if finding is not None and finding.cause is None and module is not outermost.ran:
            cause = self._sites.inside(frame.f_back, outermost.frame)
            outermost.training[id(module)] = replace(finding, cause=cause)

    def _leave_part(self, outermost: Outermost, module: nn.Module, output: object, frame: FrameType) -> None:
        if modules.mode(module) and id(module) not in outermost.training:
            self._judge_modes(outermost, [module])  # set by a hook or by the forward itself
        if outermost.grad and module is not outermost.ran and output is not RAISED:
            self._leave_recording(outermost, module)
        if (
            outermost.autograd is None
            and is_tensor(output)
            and is_grad_enabled()
            and autograd.requires_grad(output)
            and module is not outermost.ran
        ):
            cause = None if outermost.grad else self._sites.inside(frame.f_back, outermost.frame)
            outermost.autograd = Finding(self._part(outermost, module), cause, "its output requires grad")
        if draws.is_boundary(outermost, module) and draws.moved(outermost):
            self._blame(outermost, frame, frame)

    def _blame(self, outermost: Outermost, began: FrameType, frame: FrameType) -> None:
        """A generator has moved in the module that began in a frame, unless its training mode explains that."""
        module = callers.running(began)
        drawer, suspects = module, list[Draw]()
        while not draws.may_draw(outermost, module):
            drawer, suspects = draws.suspects(module, seen=outermost.entered)
            if suspects or began is outermost.frame:
                break
            began = callers.enclosing(began)  # it was drawn before the module began, by who runs it
            module = callers.running(began)
        else:
            return
        if draws.are_foreign(module, suspects, self._sites):
            return
        if modules.mode(drawer) and (outermost.model.is_model or outermost.hosts_model):
            self._judge_modes(outermost, [drawer], sensitive=True)  # whatever its code tells, but for exported graphs
            if id(drawer) in outermost.training:
                return
        if drawer is not module or not suspects or suspects[0].gated:
            outermost.unseen[id(drawer)] = draws.trained(outermost, module)
        cause = draws.first_site(suspects, self._sites)
        if cause is None and module is not outermost.ran:
            cause = self._sites.inside(frame.f_back, outermost.frame)
        why = f"{suspects[0].text}(...)" if suspects else ""
        outermost.draws.setdefault(id(drawer), Finding(self._part(outermost, drawer), cause, why))

    def _end(self, outermost: Outermost, output: object) -> None:
        module = outermost.ran
        if draws.moved(outermost):
            self._blame(outermost, outermost.frame, outermost.frame)
        for drawer, trained in outermost.unseen.items():
            if not trained <= outermost.entered:  # one of them ran by its `.forward()`
                outermost.draws.pop(drawer, None)
        if outermost.draws and generators.still(outermost.start, generators.state()):
            outermost.draws.clear()  # what was drawn was put back, by fork_rng
        self._watch.finish_lazy(outermost.model)
        is_model = outermost.model.is_model or outermost.hosts_model
        recorded = self._autograd(outermost, output) if is_model else None
        drawn = tuple(outermost.draws.values()) if is_model or self._strict else ()
        before = outermost.before
        if before is None and not (outermost.training or recorded or outermost.batch_stats or drawn):
            return
        call = ForwardCall(
            ran=self._part(outermost, outermost.owner),
            by=None if outermost.owner is module else self._part(outermost, module),
            at=self._sites.site(*outermost.called) if outermost.called else None,
            modules=outermost.modules + len(outermost.guests),
            training=tuple(outermost.training.values()),
            autograd=recorded,
            batch_stats=tuple(outermost.batch_stats.values()),
            draws=drawn,
        )
        if before is not None:
            call = self._end_strict(call, outermost, before, output)
        if call != ForwardCall(call.ran, call.at, call.modules, call.by):
            with self._lock:
                self._calls[call] += 1

    def _end_strict(self, call: ForwardCall, outermost: Outermost, before: Before, output: object) -> ForwardCall:
        settled = [old for old in before.attributes if id(old.part) not in outermost.lazy]
        with undisturbed():
            changed = tuple(attributes.changes(settled, lambda part: self._part(outermost, part)))
            written = inputs.changes(before.inputs, lambda name, x: self._is_held(outermost, output, name, x))
        self._watch.own_hooks |= leaks.by_itself(before.hooks, modules.tree(outermost.ran), self._sites.is_user)
        drawn = list(call.draws)
        moved = generators.moved(before.host)
        if moved and not outermost.training:
            drawer, suspects = draws.suspects(outermost.ran, hosts=moved)
            if not draws.are_foreign(outermost.ran, suspects, self._sites):
                why = f"the generator of {' and '.join(moved)} moved"
                drawn.append(Finding(self._part(outermost, drawer), draws.first_site(suspects, self._sites), why))
        return replace(
            call,
            draws=tuple(drawn),
            unregistered=tuple(outermost.unregistered),
            inputs=written,
            attributes=changed,
        )

    def _is_held(self, outermost: Outermost, output: object, name: str, tensor: Tensor) -> bool:
        """Whether somebody else holds an argument.  It takes a while to find out: once for each line and argument."""
        key = outermost.called, name, sys.getrefcount(tensor)
        if key not in self._held:
            apart = {id(output), *outermost.known}
            self._held[key] = holders.is_held(tensor, outermost.frame.f_back, self._sites, apart)
        return self._held[key]

    def _autograd(self, outermost: Outermost, output: object) -> Finding | None:
        """Whether the forward recorded autograd, and why: told by what came out, else by what went in."""
        part = outermost.autograd
        came_out = autograd.records(output, outermost.inputs)
        if not outermost.grad:
            if part is None and came_out:
                why = "grad mode was off, yet its output requires grad"
                part = Finding(self._part(outermost, outermost.ran), None, why)
            return replace(part, turned_on=True) if part else None
        if not (part or came_out) and (
            output is RAISED or outermost.grad_stopped or code.traits(outermost.ran).stops_grad
        ):
            return None
        what = autograd.requiring_grad(outermost.ran, outermost.inputs)
        if not what and (came_out or (part and part.why)):
            what = "its output requires grad"
        if not what and not self._strict:
            return replace(part, why="grad mode was on and its parameters require grad") if part else None
        why = f"grad mode was on and {what}" if what else "grad mode was on"
        if self._sites.in_worker():
            why += " (a worker thread: no_grad() holds only in the thread that enters it)"
        return Finding(self._part(outermost, outermost.ran), None, why)

    def _part(self, outermost: Outermost, module: nn.Module) -> Part:
        home = self._watch.find(modules.unwrapped(module))
        kind = modules.type_name(module)
        if home is None:
            return Part(outermost.model.name, outermost.guests.get(id(module), f"<{kind}>"), kind)
        return Part(home[0].name, home[1], kind)


_GRAPHS = (torch.jit.ScriptModule, torch.fx.GraphModule)


def _is_handed_in(outermost: Outermost, module: nn.Module) -> bool:
    """Whether a model that begins to run was an argument of the outermost forward, no part of it."""
    return (
        id(module) not in outermost.known
        and any(map(modules.holds_parameters, modules.tree(module)))
        and inputs.hold(*outermost.inputs, module)
    )


def _is_quiet(kind: type[nn.Module]) -> bool:
    """Whether there is nothing to see of a type in eval mode (torch's own dropout is then off) without grad mode."""
    if modules.home(kind) == _DropoutNd.__module__:
        return True
    return not code.traits_of(kind).may_draw


def _batchers(parts: list[nn.Module], kinds: set[type[nn.Module]]) -> list[_BatchNorm]:
    """The batch norms that normalise with the batch's statistics."""
    norms = {kind for kind in kinds if issubclass(kind, _BatchNorm)}
    found = [cast(_BatchNorm, part) for part in parts if type(part) in norms] if norms else []
    return [norm for norm in found if _uses_the_batch(norm)]


def _uses_the_batch(norm: _BatchNorm) -> bool:
    """Whether a batch norm normalises with the batch's statistics for want of others."""
    return norm._buffers.get("running_mean") is None


calls: Wrapped[Forwards] = Wrapped("__call__")
_is_compiling = torch.compiler.is_compiling


@calls.by
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    if _is_compiling():
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


def observing(call: Method) -> Method:
    """The same in the place of a `__call__` with which a class replaces that of `nn.Module`."""

    @wraps(call)
    def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if _is_compiling():
            return call(self, *args, **kwargs)
        entered: list[Forwards] = []
        output: object = RAISED
        try:
            for observer in calls.observers:
                if observer.enter(self, args, kwargs):
                    entered.insert(0, observer)
            output = call(self, *args, **kwargs)
            return output
        finally:
            for observer in entered:
                observer.leave(self, output)

    return _observed
