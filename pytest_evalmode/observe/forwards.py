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
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin

from pytest_evalmode.observe import attributes, autograd, callers, code, generators, graphs, inputs, models
from pytest_evalmode.observe.attributes import Attributes
from pytest_evalmode.observe.code import Draw
from pytest_evalmode.observe.fingerprint import undisturbed
from pytest_evalmode.observe.inputs import Inputs
from pytest_evalmode.observe.sites import Sites
from pytest_evalmode.observe.watch import Model, Watch
from pytest_evalmode.observe.wrapped import Wrapped
from pytest_evalmode.trace import Finding, ForwardCall, Part, Site


@dataclass(slots=True)
class Outermost:
    """An outermost forward while it runs."""

    model: Model
    owner: nn.Module
    """What was called, by `__call__` or by another method."""
    ran: nn.Module
    """What that ran first past its own `__call__`; else the same."""
    frame: FrameType
    called: tuple[CodeType, int] | None
    known: set[int]
    """The modules that are part of it."""
    quiet: set[int]
    """Those of which, in eval mode and with grad mode off, there is nothing to see."""
    modules: int
    grad: bool
    start: generators.State
    state: generators.State
    inputs: tuple[Any, Any]
    guests: dict[int, str] = field(default_factory=dict)
    """The paths of modules that run in it without being part of it."""
    pinned: list[nn.Module] = field(default_factory=list)
    """Them and their parts: one that died would leave its `id` to another."""
    training: dict[int, Finding] = field(default_factory=dict)
    autograd: Finding | None = None
    grad_stopped: bool = False
    batch_stats: dict[int, Finding] = field(default_factory=dict)
    draws: dict[int, Finding] = field(default_factory=dict)
    unregistered: list[Finding] = field(default_factory=list)
    before: Before | None = None
    lazy: set[int] = field(default_factory=set)
    """Modules that initialise their parameters in this very forward, at random."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a strict window reads before a forward."""

    inputs: Inputs
    attributes: list[Attributes]
    host: generators.HostState


class Running(threading.local):
    """The outermost forward that this thread is in."""

    outermost: Outermost | None = None


class Forwards:
    """Observes the forwards of a window, and adds the models that run to its watch."""

    def __init__(self, watch: Watch, sites: Sites, *, strict: bool = False) -> None:
        self.failures: list[Exception] = []
        self.seconds = 0.0
        """What it cost to begin and to end outermost forwards; what runs for each part is too short to be timed."""
        self.ran = 0
        """Outermost forwards of what may be a model: one that is quantised has no parameters."""
        self._calls: Counter[ForwardCall] = Counter()
        self._lock = threading.Lock()
        self._watch = watch
        self._sites = sites
        self._strict = strict
        self._running = Running()
        self._quiet_types: dict[type[nn.Module], bool] = {}

    def take(self) -> tuple[ForwardCall, ...]:
        """The calls so far that have something to say; from now on they are counted anew."""
        calls, self._calls = self._calls, Counter()
        return tuple(replace(call, count=count) for call, count in calls.items())

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """A forward begins in the calling frame.  False if there is nothing to see of it; else `leave` must follow."""
        outermost = self._running.outermost
        if (
            outermost is not None
            and id(module) in outermost.quiet
            and not (outermost.grad or getattr(module, "training", False) or torch.is_grad_enabled())
        ):
            return False
        frame = sys._getframe(1)
        try:
            if outermost is None:
                began = perf_counter()
                outermost = self._running.outermost = self._begin(module, args, kwargs, frame)
                self.seconds += perf_counter() - began
                if outermost is None:
                    return False
            elif id(module) not in outermost.known:
                self._visit(outermost, module, frame)
            self._enter_part(outermost, module, frame)
        except Exception as error:
            self.failures.append(error)
        return outermost is not None

    def leave(self, module: nn.Module, output: object) -> None:
        """A forward ends in the calling frame; `output` is None if by an exception."""
        outermost = self._running.outermost
        assert outermost is not None
        frame = sys._getframe(1)
        try:
            self._leave_part(outermost, module, output, frame)
            if frame is outermost.frame:
                began = perf_counter()
                self._end(outermost, output)
                self.seconds += perf_counter() - began
        except Exception as error:
            self.failures.append(error)
        if frame is outermost.frame:
            self._running.outermost = None

    def _quiet(self, parts: list[nn.Module], kinds: set[type[nn.Module]]) -> set[int]:
        for kind in kinds.difference(self._quiet_types):
            self._quiet_types[kind] = _is_quiet(kind)
        # A hook may set the mode of its module after all.
        return {id(part) for part in parts if self._quiet_types[type(part)] and not part._forward_pre_hooks}

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType
    ) -> Outermost | None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        owner, called = callers.owner(module, frame, self._sites)
        caller = self._sites.outside(called.f_back)
        if caller.tracing:
            return None
        home = self._watch.find(module)
        model = home[0] if home else self._watch.add(owner, read=False)
        if not caller.borrowed:
            self._watch.read(model)
        if caller.frame is not None:
            model.last = (caller.frame.f_code, caller.frame.f_lineno)
        parts = models.tree(module)
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
            quiet=self._quiet(parts, kinds),
            modules=len(parts) if owner is module else len(models.tree(owner)),
            grad=torch.is_grad_enabled(),
            start=now,
            state=now,
            inputs=(args, kwargs),
        )
        cause = self._sites.inside(frame.f_back, called.f_back) if owner is not module else None
        self._judge_modes(outermost, parts, cause)
        if outermost.training:
            outermost.quiet.difference_update(id(part) for part in parts if models.is_opaque(part))
        if any(issubclass(kind, _GRAPHS) for kind in kinds):
            self._judge_graphs(outermost, parts)
        batchers = _batchers(parts, kinds)
        if batchers:
            outermost.quiet.difference_update(map(id, batchers))
            self._judge_compiled(outermost, parts, batchers)
        if self._strict:
            with undisturbed():
                told = attributes.take(parts) if model.has_state else []
                outermost.before = Before(inputs.take(args, kwargs), told, generators.host_state())
        return outermost

    def _visit(self, outermost: Outermost, module: nn.Module, frame: FrameType) -> None:
        """A module that ran inside a model without being part of it: its state and modes are watched all the same."""
        outermost.known.update(map(id, models.tree(outermost.ran)))
        if id(module) in outermost.known:  # it has become one since the forward began
            self._judge_modes(outermost, models.tree(module))
            return
        parts = models.tree(module)
        outermost.known.update(map(id, parts))
        outermost.pinned += parts
        caller = callers.enclosing(frame)
        where = self._part(outermost, caller)
        step = models.attribute_of(caller, module) or f"<{models.type_name(module)}>"
        for path, part in models.walk(module):
            outermost.guests[id(part)] = ".".join(filter(None, (where.path, step, path)))
        if any(map(models.is_stateful, parts)):
            self._watch.add(module, f"{where.name}.{step}")
        cause = self._sites.inside(frame.f_back, outermost.frame)
        self._judge_modes(outermost, parts, cause, "it is no submodule: eval() cannot reach it")
        self._judge_graphs(outermost, parts)
        told = any(models.is_stateful(part) or models.is_sensitive(part) for part in parts)
        if self._strict and told and not graphs.is_exported(module):
            outermost.unregistered.append(Finding(self._part(outermost, module), cause))

    def _judge_modes(
        self, outermost: Outermost, parts: list[nn.Module], cause: Site | None = None, why: str = ""
    ) -> None:
        suspects = [part for part in parts if getattr(part, "training", False)]
        if not suspects:
            return
        excused = {id(p) for part in parts if graphs.is_exported(part) for p in models.tree(part)}
        for part in suspects:
            if id(part) not in excused:
                sensitive = models.is_sensitive(part)
                if sensitive or models.holds_parameters(part):
                    named = replace(self._part(outermost, part), sensitive=sensitive)
                    outermost.training.setdefault(id(part), Finding(named, cause, why))

    def _judge_graphs(self, outermost: Outermost, parts: list[nn.Module]) -> None:
        inside: set[int] = set()
        for part in parts:
            if isinstance(part, _GRAPHS) and id(part) not in inside:
                inside.update(map(id, models.tree(part)))
                if id(part) not in outermost.training:
                    for sentence in graphs.batch_norms(part):
                        outermost.batch_stats.setdefault(id(part), Finding(self._part(outermost, part), None, sentence))

    def _judge_compiled(self, outermost: Outermost, parts: list[nn.Module], batchers: list[_BatchNorm]) -> None:
        """Batch norms whose forward nobody will see run."""
        inside = {id(p) for part in parts if models.is_opaque(part) for p in models.tree(part)}
        for norm in batchers:
            if id(norm) in inside and not norm.training:
                self._note_batch_stats(outermost, norm, None)

    def _note_batch_stats(self, outermost: Outermost, norm: _BatchNorm, cause: Site | None) -> None:
        why = "it has no running statistics (track_running_stats=False)"
        outermost.batch_stats[id(norm)] = Finding(self._part(outermost, norm), cause, why)

    def _enter_part(self, outermost: Outermost, module: nn.Module, frame: FrameType) -> None:
        training = getattr(module, "training", False)
        if training:
            self._enter_training(outermost, module, frame)
        elif isinstance(module, _BatchNorm) and _uses_the_batch(module) and id(module) not in outermost.batch_stats:
            self._note_batch_stats(outermost, module, self._sites.inside(frame.f_back, outermost.frame))
        if outermost.grad and module is not outermost.ran:
            self._enter_recording(outermost, module)
        lazy = isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        if lazy:
            outermost.lazy.add(id(module))
        if frame is not outermost.frame and self._accounts_for_draws(outermost, module) and _moved(outermost):
            self._blame(outermost, callers.enclosing(frame), frame)

    def _enter_recording(self, outermost: Outermost, module: nn.Module) -> None:
        """Grad mode was on when the whole began: whether it still is where a part with parameters runs."""
        if not torch.is_grad_enabled():
            outermost.grad_stopped = True
            return
        held = models.holds_parameters(module) if self._strict else autograd.is_trainable(module)
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
        if getattr(module, "training", False) and id(module) not in outermost.training:
            self._judge_modes(outermost, [module])  # set by a hook or by the forward itself
        if (
            outermost.autograd is None
            and isinstance(output, Tensor)
            and torch.is_grad_enabled()
            and autograd.requires_grad(output)
            and module is not outermost.ran
        ):
            cause = None if outermost.grad else self._sites.inside(frame.f_back, outermost.frame)
            outermost.autograd = Finding(self._part(outermost, module), cause, "its output requires grad")
        if self._accounts_for_draws(outermost, module) and _moved(outermost):
            self._blame(outermost, module, frame)

    def _accounts_for_draws(self, outermost: Outermost, module: nn.Module) -> bool:
        """Whether what was drawn before a part and what is drawn in it are to be told apart."""
        return code.traits(module).may_draw or self._may_draw_rightly(outermost, module)

    def _may_draw_rightly(self, outermost: Outermost, module: nn.Module) -> bool:
        """Whether a module initialises itself, or is in training mode, which is another rule's."""
        if id(module) in outermost.lazy or id(module) in outermost.training:
            return True
        trained = bool(outermost.training) and models.is_opaque(module)
        return trained and any(id(part) in outermost.training for part in models.tree(module))

    def _blame(self, outermost: Outermost, module: nn.Module, frame: FrameType) -> None:
        """A generator has moved in a module, unless its training mode explains that."""
        if self._may_draw_rightly(outermost, module):
            return
        drawer, candidates = self._candidates(module)
        if self._foreign(module, candidates):
            return
        cause = self._first_site(candidates)
        if cause is None and module is not outermost.ran:
            cause = self._sites.inside(frame.f_back, outermost.frame)
        why = f"{candidates[0].text}(...)" if candidates else ""
        outermost.draws.setdefault(id(drawer), Finding(self._part(outermost, drawer), cause, why))

    def _foreign(self, module: nn.Module, candidates: list[Draw]) -> bool:
        """Whether another thread may well have drawn, and no call here ignores the mode, as one would that drew."""
        return self._sites.others_run() and not graphs.may_draw(module) and all(draw.gated for draw in candidates)

    def _first_site(self, candidates: list[Draw]) -> Site | None:
        sites = (self._sites.site(draw.code, draw.line) for draw in candidates)
        return next((site for site in sites if site), None)

    def _candidates(self, module: nn.Module) -> tuple[nn.Module, list[Draw]]:
        """The likeliest calls to have drawn, in a module's code or else in that of one beneath it."""
        for part in models.tree(module):
            found = code.draws(part)
            if found and (part is module or not found[0].gated):
                return part, found
        return module, []

    def _end(self, outermost: Outermost, output: object) -> None:
        module = outermost.ran
        if _moved(outermost):
            self._blame(outermost, module, outermost.frame)
        if outermost.draws and generators.still(outermost.start, generators.state()):
            outermost.draws.clear()  # what was drawn was put back, by fork_rng
        self._watch.finish_lazy(outermost.model)
        is_model = outermost.model.is_model
        recorded = self._autograd(outermost, output) if is_model else None
        draws = list(outermost.draws.values()) if is_model or self._strict else []
        before = outermost.before
        if before is None and not (outermost.training or recorded or outermost.batch_stats or draws):
            return
        call = ForwardCall(
            ran=self._part(outermost, outermost.owner),
            by=None if outermost.owner is module else self._part(outermost, module),
            at=self._sites.site(*outermost.called) if outermost.called else None,
            modules=outermost.modules,
            training=tuple(outermost.training.values()),
            autograd=recorded,
            batch_stats=tuple(outermost.batch_stats.values()),
            draws=tuple(draws),
        )
        if before is not None:
            call = self._end_strict(call, outermost, before)
        if call != ForwardCall(call.ran, call.at, call.modules, call.by):
            with self._lock:
                self._calls[call] += 1

    def _end_strict(self, call: ForwardCall, outermost: Outermost, before: Before) -> ForwardCall:
        settled = [old for old in before.attributes if id(old.part) not in outermost.lazy]
        with undisturbed():
            changed = tuple(attributes.changes(settled, lambda part: self._part(outermost, part)))
            written = inputs.changes(before.inputs)
        draws = list(call.draws)
        moved = generators.moved(before.host)
        if moved and not outermost.training:
            drawer, candidates = self._candidates(outermost.ran)
            if not self._foreign(outermost.ran, candidates):
                why = f"the generator of {' and '.join(moved)} moved"
                draws.append(Finding(self._part(outermost, drawer), self._first_site(candidates), why))
        return replace(
            call,
            draws=tuple(draws),
            unregistered=tuple(outermost.unregistered),
            inputs=written,
            attributes=changed,
        )

    def _autograd(self, outermost: Outermost, output: object) -> Finding | None:
        """Whether the forward recorded autograd, and why: told by what came out, else by what went in."""
        part = outermost.autograd
        came_out = autograd.records(output, outermost.inputs)
        if not outermost.grad:
            why = "grad mode was off, yet its output requires grad"
            return part or (Finding(self._part(outermost, outermost.ran), None, why) if came_out else None)
        if not (part or came_out) and (outermost.grad_stopped or code.traits(outermost.ran).stops_grad):
            return None
        what = autograd.requiring_grad(outermost.ran, outermost.inputs)
        if not what and (came_out or (part and part.why)):
            what = "its output requires grad"
        if not what and not self._strict:
            return None
        why = f"grad mode was on and {what}" if what else "grad mode was on"
        return Finding(self._part(outermost, outermost.ran), None, why)

    def _part(self, outermost: Outermost, module: nn.Module) -> Part:
        home = self._watch.find(models.unwrapped(module))
        kind = models.type_name(module)
        if home is None:
            return Part(outermost.model.name, outermost.guests.get(id(module), f"<{kind}>"), kind)
        return Part(home[0].name, home[1], kind)


def _moved(outermost: Outermost) -> bool:
    """Whether a generator has moved since this was last asked."""
    now = generators.state()
    if generators.still(outermost.state, now):
        return False
    outermost.state = now
    return True


_GRAPHS = (torch.jit.ScriptModule, torch.fx.GraphModule)


def _is_quiet(kind: type[nn.Module]) -> bool:
    """Whether there is nothing to see of a type in eval mode (torch's own dropout is then off) without grad mode."""
    if kind.__module__ == _DropoutNd.__module__:
        return True
    return not (issubclass(kind, LazyModuleMixin) or code.traits_of(kind).may_draw)


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
    output = None
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
