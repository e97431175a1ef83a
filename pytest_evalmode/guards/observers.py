"""The observers of one guard, started, stopped and queried together."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import FrameType

from torch import nn

from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.observe.calls import leak_lines
from pytest_evalmode.observe.calls.attribute_writes import AttributeWrites
from pytest_evalmode.observe.calls.exports import ModelExports
from pytest_evalmode.observe.calls.global_state_calls import GlobalStateCalls
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.calls.model_operations import ModelOperations
from pytest_evalmode.observe.calls.state_dict_loads import StateDictLoads
from pytest_evalmode.observe.calls.timeline import Timeline
from pytest_evalmode.observe.forwards.call_overrides import CallOverrides
from pytest_evalmode.observe.forwards.observer import ForwardObserver
from pytest_evalmode.observe.forwards.paused_models import PausedModels
from pytest_evalmode.observe.models.session_history import SessionHistory
from pytest_evalmode.observe.models.shared_models import SharedModels
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.source.thread_pools import ThreadPools
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import FlagTracker
from pytest_evalmode.rules.exemptions import is_inside
from pytest_evalmode.trace import Leak, Trace


class Observers:
    """All observers of one guard, started and stopped together."""

    def __init__(self, config: GuardConfig) -> None:
        self._strict = strict = config.strict
        self._user_lines = UserLines(config.root, config.test_files)
        self._earlier_mode_changes = config.earlier_mode_changes
        self.watch = Watch(self._user_lines.site, strict=strict)
        self.shared = SharedModels(self.watch)
        self._timeline = Timeline(self.watch, self._user_lines) if config.record_details else None
        self._mode_changes = ModeChanges(self._user_lines, self._timeline, self._earlier_mode_changes)
        self.forwards = ForwardObserver(self.watch, self._user_lines, self._mode_changes, self._timeline, strict=strict)
        self._operations = ModelOperations(self.watch, self._user_lines)
        self._loads = StateDictLoads(self.watch, self._user_lines)
        self._exports = ModelExports(self.watch, self._user_lines, self._mode_changes)
        self._global_state_calls = GlobalStateCalls(self._user_lines)
        self._attribute_writes = AttributeWrites(self.watch, self._user_lines)
        self._global_flags = FlagTracker({}, {})
        self._observers: tuple[Observer, ...] = (
            self.forwards,
            CallOverrides(),
            self._mode_changes,
            self._exports,
            ThreadPools(self._user_lines.is_user_code),
            self._operations,
            *((self._loads, self._global_state_calls, self._attribute_writes) if strict else ()),
        )
        self._paused_models = PausedModels(self.watch, self._user_lines)
        self._running = ExitStack()

    @property
    def errors(self) -> tuple[Exception, ...]:
        """The errors of all observers."""
        earlier = () if self._earlier_mode_changes is None else (self._earlier_mode_changes,)
        observers = self.watch, self._paused_models, *self._observers, *earlier
        return tuple(error for observer in observers for error in observer.errors)

    def watch_shared(self, model: nn.Module, history: SessionHistory | None) -> None:
        """Watch a model that outlives the window."""
        self.watch.add(model)
        if self._strict:
            self.shared.add(model, history)
            if self.forwards.is_running:
                self._attribute_writes.start(strict=True)

    def read_baselines(self, history: SessionHistory | None) -> None:
        """Record the state of the models and of torch at the start of the window."""
        self.watch.reset_baseline()
        if self._strict:
            flags = flag_snapshots.read_global_flags()
            self._global_flags = FlagTracker(
                flags, flags, session_start=history.global_state.session_start if history is not None else {}
            )

    def reread_baselines(self) -> None:
        """Record the state of the models and of torch again after a pause, for the next part of the window."""
        self.watch.reset_baseline()
        self._mode_changes.reset()
        if self._strict:
            self.shared.reset_baseline()
            self._attribute_writes.reset()
            self._global_flags.latest = flag_snapshots.read_global_flags()

    def watch_frozen(self) -> None:
        """Watch during a pause what must not change even then, from now on or from a model's first forward."""
        self.watch.reset_baseline()
        self._paused_models.start()

    def collect_frozen(self, frozen: tuple[str, ...], frame: FrameType | None) -> Trace:
        """Return the changes since `watch_frozen()` of the modules that globs name; the frame's line is the pause."""
        self._paused_models.stop()
        at = self._user_lines.find_line(frame)
        changes = [change for change in self.watch.compare() if is_inside(change.model, change.path, frozen)]
        return Trace(changes=tuple(replace(change, last_forward=at, frozen=True) for change in changes))

    def start(self) -> None:
        """Start all observers, or none if one of them fails."""
        with ExitStack() as stack:
            for observer in self._observers:
                stack.callback(observer.stop)
                observer.start(strict=self._strict)
            self._running = stack.pop_all()

    def stop(self) -> None:
        """Stop all observers, those too that come after one that fails."""
        self._running.close()

    def collect_trace(self, *, with_names: bool) -> Trace:
        """Return the facts recorded since the last call.

        `with_names` adds the qualified names of all modules and tensors, which globs of exemptions are matched against.
        """
        operations = self._operations.pop_operations()
        return Trace(
            models=self.watch.registry.watched_models(),
            calls=(*self.forwards.pop_calls(), *self._exports.pop_calls()),
            changes=self.watch.compare(),
            steps=operations["steps"],
            writes=operations["writes"],
            gradients=operations["gradients"],
            names=frozenset(self.watch.registry.paths()) if with_names else frozenset(),
            loads=self._loads.pop_loads(),
            leaks=self._collect_leaks(),
            events=self._timeline.pop_events() if self._timeline is not None else (),
        )

    def _collect_leaks(self) -> tuple[Leak, ...]:
        """Return the settings that changed since the last call, with the line that changed each, where it is known."""
        if not self._strict:
            return ()
        global_leaks = self._global_flags.find_leaks(None, flag_snapshots.read_global_flags())
        writes = tuple(self._attribute_writes.pop_leaks())
        flags = (leak for leak in self.shared.find_leaks() if not any(leak.is_inside(write) for write in writes))
        return (*map(self._with_model_line, flags), *writes, *map(self._with_global_line, global_leaks))

    def _with_model_line(self, leak: Leak) -> Leak:
        model = self.watch.registry.living_models().get(leak.model or "")
        if model is None:
            return leak
        return replace(leak, at=leak_lines.find_leak_line(leak, model, self._mode_changes, self._user_lines))

    def _with_global_line(self, leak: Leak) -> Leak:
        line = self._global_state_calls.line_of(leak.name, leak.after)
        if line is None and leak.name in ("grad_mode", "inference_mode"):
            line = leak_lines.find_suspended_context(self._user_lines)
            return replace(leak, at=line, suspended=line is not None)
        return replace(leak, at=line)

    def restored_settings(self) -> set[tuple[str | None, str]]:
        """Return the (model name, setting) pairs that were restored to their values at the start of the window."""
        return self.shared.restored_flags() | {(None, name) for name in self._global_flags.restored()}

    def final_trace(self, history: SessionHistory | None, *, needs_forward: bool, report_drift: bool) -> Trace:
        """Return the facts that are known only when the window closes."""
        global_drift = history.global_state.pop_drift() if report_drift and history is not None else ()
        return Trace(
            drifts=(*self.shared.drifts(), *global_drift) if report_drift else (),
            needs_forward=needs_forward,
            forwards=self.forwards.forward_count,
        )
