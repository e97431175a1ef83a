"""All that observes one window: begun together, ended together, asked together."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.observe.calls import (
    exports,
    global_state_calls,
    gradients,
    leak_lines,
    mode_changes,
    model_conversions,
    state_dict_loads,
)
from pytest_evalmode.observe.calls.exports import ModelExports
from pytest_evalmode.observe.calls.global_state_calls import GlobalStateCalls
from pytest_evalmode.observe.calls.gradients import GradientCalls
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.calls.model_conversions import ModelConversions
from pytest_evalmode.observe.calls.optimizer_steps import OptimizerSteps
from pytest_evalmode.observe.calls.state_dict_loads import StateDictLoads
from pytest_evalmode.observe.calls.timeline import Timeline
from pytest_evalmode.observe.forwards import cost, observer
from pytest_evalmode.observe.forwards.call_overrides import call_overrides
from pytest_evalmode.observe.forwards.observer import ForwardObserver
from pytest_evalmode.observe.models.session_history import SessionHistory
from pytest_evalmode.observe.models.shared_models import SharedModels
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source import thread_pools
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import FlagTracker
from pytest_evalmode.trace import Leak, Site, Trace


class Observers:
    """The eyes of one guard."""

    def __init__(self, config: GuardConfig) -> None:
        self._strict = strict = config.strict
        self._sites = UserLines(config.root, config.test_files)
        self._before = config.earlier_mode_changes
        self.watch = Watch(self._sites.site, strict=strict)
        self.shared = SharedModels(self.watch)
        self._events = Timeline(self.watch, self._sites) if config.record_details else None
        self._switches = ModeChanges(self._sites, self._events, self._before)
        self.forwards = ForwardObserver(self.watch, self._sites, self._switches, self._events, strict=strict)
        self._writers = ModelConversions(self.watch, self._sites)
        self._loads = StateDictLoads(self.watch, self._sites, self._writers, strict=strict)
        self._exports = ModelExports(self.watch, self._sites, self._switches)
        self._optimizers = OptimizerSteps(self.watch, self._sites)
        self._gradients = GradientCalls(self._sites)
        self._setters = GlobalStateCalls(self._sites)
        self._globals = FlagTracker({}, {})

    @property
    def failures(self) -> tuple[Exception, ...]:
        writers = (self._loads, self._writers, self._setters)
        calls = (self._switches, self._exports, self._optimizers, self._gradients, *writers)
        before = (self._before,) if self._before is not None else ()
        each = (self.watch, self.forwards, *calls, *before)
        return tuple(failure for observer in each for failure in observer.failures)

    @property
    def seconds(self) -> float:
        """What it has cost to observe forwards."""
        return self.forwards.seconds / cost.timed_share()

    def watch_shared(self, model: nn.Module, history: SessionHistory | None) -> None:
        """Watch a model that outlives the window."""
        self.watch.add(model)
        if self._strict:
            self.shared.add(model, history)

    def read_baselines(self, history: SessionHistory | None) -> None:
        """Take what is now for the beginning of the window."""
        self.watch.reset_baseline()
        if self._strict:
            flags = flag_snapshots.read_global_flags()
            self._globals = FlagTracker(
                flags, flags, session_start=history.global_state.session_start if history is not None else {}
            )

    def reread_baselines(self) -> None:
        """The same for a part of the window, behind a pause."""
        self.watch.reset_baseline()
        self._switches.reset()
        if self._strict:
            self.shared.reset_baseline()
            self._globals.latest = flag_snapshots.read_global_flags()

    def start(self) -> None:
        observer.call_patch.start(self.forwards)
        call_overrides.start()
        mode_changes.train_patch.start(self._switches)
        exports.start(self._exports)
        gradients.run_backward_patch.start(self._gradients)
        thread_pools.start(self._sites)
        self._optimizers.start()
        state_dict_loads.load_state_dict_patch.start(self._loads)
        model_conversions.apply_patch.start(self._writers)
        model_conversions.requires_grad_patch.start(self._writers)
        if self._strict:
            global_state_calls.start(self._setters)

    def stop(self) -> None:
        observer.call_patch.stop(self.forwards)
        call_overrides.stop()
        mode_changes.train_patch.stop(self._switches)
        exports.stop(self._exports)
        gradients.run_backward_patch.stop(self._gradients)
        thread_pools.stop(self._sites)
        self._optimizers.stop()
        state_dict_loads.load_state_dict_patch.stop(self._loads)
        model_conversions.apply_patch.stop(self._writers)
        model_conversions.requires_grad_patch.stop(self._writers)
        global_state_calls.stop(self._setters)

    def collect_trace(self, *, with_names: bool) -> Trace:
        """What was seen since this was last asked; with the names of all there is, where exemptions go by them."""
        return Trace(
            models=self.watch.watched_models(),
            calls=(*self.forwards.pop_calls(), *self._exports.pop_calls()),
            changes=self.watch.compare(),
            steps=self._optimizers.pop_steps(),
            writes=self._writers.pop_operations(),
            gradients=self._gradients.pop_operations(),
            names=frozenset(self.watch.paths()) if with_names else frozenset(),
            loads=self._loads.pop_loads(),
            events=self._events.pop_events() if self._events is not None else (),
        )

    def collect_leaks(self) -> tuple[Leak, ...]:
        """What has been set otherwise since this was last asked, and by which lines, where that is known."""
        if not self._strict:
            return ()
        left = self._globals.find_leaks(None, flag_snapshots.read_global_flags())
        return (
            *(replace(leak, at=self._set_by(leak)) for leak in self.shared.find_leaks()),
            *(replace(leak, at=self._setters.line_of(leak.name, leak.after)) for leak in left),
        )

    def _set_by(self, leak: Leak) -> Site | None:
        model = self.watch.living_models().get(leak.model or "")
        return leak_lines.find_leak_line(leak, model, self._switches, self._sites) if model is not None else None

    def restored_settings(self) -> set[tuple[str | None, str]]:
        """The settings that are what they were at first."""
        return self.shared.restored_flags() | {(None, name) for name in self._globals.restored()}

    def final_trace(self, history: SessionHistory | None, *, needs_forward: bool, report_drift: bool) -> Trace:
        """What can only be told once all is over."""
        return Trace(
            drifts=self.shared.drifts() if report_drift else (),
            global_drifts=history.global_state.pop_drift() if report_drift and history is not None else (),
            needs_forward=needs_forward,
            forwards=self.forwards.forward_count,
        )
