"""What shared models held when the last guarded test saw them, and what has run since -> Drift."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.global_state import GlobalStateHistory
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.trace import Drift


@dataclass(frozen=True, slots=True)
class Seen:
    """A shared model as a guarded test left it."""

    module: weakref.ref[nn.Module]
    snapshot: Snapshot
    by: str
    events: int
    """How many events there had been by then."""


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something that ran: a test, or the set-up or teardown of a fixture."""

    description: str
    fixtures: frozenset[str]
    """The names of those at hand."""
    is_test: bool = True
    is_from_plugin: bool = False
    """Whether it is a fixture of an installed plugin's: a suspect only where there is no other."""


@dataclass(slots=True)
class SessionHistory:
    """The memory of a session; a model that dies is forgotten."""

    global_state: GlobalStateHistory = field(default_factory=GlobalStateHistory)
    events: list[SessionEvent] = field(default_factory=list)
    """Since the model that has not been seen for longest."""
    _forgotten: int = 0
    """How many there were before."""
    _seen: dict[int, Seen] = field(default_factory=dict)

    def record_event(self, event: SessionEvent) -> None:
        if self._seen:
            self.events.append(event)

    def record_model(self, module: nn.Module, snapshot: Snapshot, test: str) -> None:
        key = id(module)
        ref = weakref.ref(module, lambda _: self._seen.pop(key, None))
        self._seen[key] = Seen(ref, snapshot, test, self._forgotten + len(self.events))
        old = min(seen.events for seen in self._seen.values()) - self._forgotten
        del self.events[:old]
        self._forgotten += old

    def find_drift(self, module: nn.Module, name: str, now: Snapshot) -> Drift | None:
        """What is not as the last guarded test left it.

        Likeliest did it who had the model, then a test, then who ran last.
        """
        seen = self._seen.get(id(module))
        if seen is None or seen.module() is not module:
            return None
        changes = snapshot.find_changes(name, seen.snapshot, now, modules.walk(module), None)
        changes = [change for change in changes if change.persistent]
        if not changes:
            return None
        fixture = name.partition(".")[0].partition("[")[0]
        since = list(reversed(self.events[seen.events - self._forgotten :]))
        since = [event for event in since if fixture in event.fixtures or not event.is_from_plugin] or since
        since.sort(key=lambda event: (fixture not in event.fixtures, not event.is_test))
        return Drift(name, tuple(changes), seen.by, tuple(dict.fromkeys(event.description for event in since)))
