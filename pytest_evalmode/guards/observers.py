"""All that observes one window: begun together, ended together, asked together."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pytest_evalmode.guards.config import Terms
from pytest_evalmode.observe.calls import (
    exports,
    global_state_calls,
    gradients,
    leak_lines,
    mode_changes,
    model_conversions,
    state_dict_loads,
)
from pytest_evalmode.observe.calls.exports import Exports
from pytest_evalmode.observe.calls.global_state_calls import Setters
from pytest_evalmode.observe.calls.gradients import Gradients
from pytest_evalmode.observe.calls.mode_changes import Switches
from pytest_evalmode.observe.calls.model_conversions import Writers
from pytest_evalmode.observe.calls.optimizer_steps import Optimizers
from pytest_evalmode.observe.calls.state_dict_loads import Loads
from pytest_evalmode.observe.calls.timeline import Events
from pytest_evalmode.observe.forwards import cost, observer
from pytest_evalmode.observe.forwards.call_overrides import own_calls
from pytest_evalmode.observe.forwards.observer import Forwards
from pytest_evalmode.observe.models.session_history import History
from pytest_evalmode.observe.models.shared_models import Shared
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source import thread_pools
from pytest_evalmode.observe.source.user_lines import Sites
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import Baseline
from pytest_evalmode.trace import Leak, Site, Trace


class Observers:
    """The eyes of one guard."""

    def __init__(self, terms: Terms) -> None:
        self._strict = strict = terms.strict
        self._sites = Sites(terms.root, terms.tests)
        self._before = terms.switches
        self.watch = Watch(self._sites.site, strict=strict)
        self.shared = Shared(self.watch)
        self._events = Events(self.watch, self._sites) if terms.shown else None
        self._switches = Switches(self._sites, self._events, self._before)
        self.forwards = Forwards(self.watch, self._sites, self._switches, self._events, strict=strict)
        self._writers = Writers(self.watch, self._sites)
        self._loads = Loads(self.watch, self._sites, self._writers, strict=strict)
        self._exports = Exports(self.watch, self._sites, self._switches)
        self._optimizers = Optimizers(self.watch, self._sites)
        self._gradients = Gradients(self._sites)
        self._setters = Setters(self._sites)
        self._globals = Baseline({}, {})

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

    def share(self, model: nn.Module, history: History | None) -> None:
        """Watch a model that outlives the window."""
        self.watch.add(model)
        if self._strict:
            self.shared.share(model, history)

    def begin(self, history: History | None) -> None:
        """Take what is now for the beginning of the window."""
        self.watch.begin_anew()
        if self._strict:
            flags = flag_snapshots.global_flags()
            self._globals = Baseline(flags, flags, began=history.world.began if history is not None else {})

    def begin_anew(self) -> None:
        """The same for a part of the window, behind a pause."""
        self.watch.begin_anew()
        self._switches.forget()
        if self._strict:
            self.shared.begin_anew()
            self._globals.last = flag_snapshots.global_flags()

    def listen(self) -> None:
        observer.calls.start(self.forwards)
        own_calls.start()
        mode_changes.switches.start(self._switches)
        exports.start(self._exports)
        gradients.gradients.start(self._gradients)
        thread_pools.start(self._sites)
        self._optimizers.start()
        state_dict_loads.loads.start(self._loads)
        model_conversions.conversions.start(self._writers)
        model_conversions.demands.start(self._writers)
        if self._strict:
            global_state_calls.start(self._setters)

    def stop(self) -> None:
        observer.calls.stop(self.forwards)
        own_calls.stop()
        mode_changes.switches.stop(self._switches)
        exports.stop(self._exports)
        gradients.gradients.stop(self._gradients)
        thread_pools.stop(self._sites)
        self._optimizers.stop()
        state_dict_loads.loads.stop(self._loads)
        model_conversions.conversions.stop(self._writers)
        model_conversions.demands.stop(self._writers)
        global_state_calls.stop(self._setters)

    def take(self, *, named: bool) -> Trace:
        """What was seen since this was last asked; with the names of all there is, where exemptions go by them."""
        return Trace(
            models=self.watch.facts(),
            calls=(*self.forwards.take(), *self._exports.take()),
            changes=self.watch.compare(),
            steps=self._optimizers.take(),
            writes=self._writers.take(),
            gradients=self._gradients.take(),
            names=frozenset(self.watch.paths()) if named else frozenset(),
            loads=self._loads.take(),
            events=self._events.take() if self._events is not None else (),
        )

    def leaks(self) -> tuple[Leak, ...]:
        """What has been set otherwise since this was last asked, and by which lines, where that is known."""
        if not self._strict:
            return ()
        left = self._globals.since(None, flag_snapshots.global_flags())
        return (
            *(replace(leak, at=self._set_by(leak)) for leak in self.shared.leaks()),
            *(replace(leak, at=self._setters.line(leak.name, leak.after)) for leak in left),
        )

    def _set_by(self, leak: Leak) -> Site | None:
        model = self.watch.living().get(leak.model or "")
        return leak_lines.line(leak, model, self._switches, self._sites) if model is not None else None

    def put_back(self) -> set[tuple[str | None, str]]:
        """The settings that are what they were at first."""
        return self.shared.put_back() | {(None, name) for name in self._globals.put_back()}

    def ended(self, history: History | None, *, needs_forward: bool, heard: bool) -> Trace:
        """What can only be told once all is over."""
        return Trace(
            drifts=self.shared.drifts() if heard else (),
            global_drifts=history.world.tell() if heard and history is not None else (),
            needs_forward=needs_forward,
            forwards=self.forwards.ran,
        )
