"""State of the shared models after the last guarded test that saw them, and the tests and fixtures that ran since."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.global_state import GlobalStateHistory
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.trace import Drift


@dataclass(frozen=True, slots=True)
class _LastSeen:
    """A shared model as the last guarded test left it."""

    snapshot: Snapshot
    test: str
    event_count: int
    """How many events the session had recorded by then."""


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something that ran and may have changed a shared model: a test, or the setup or teardown of a fixture."""

    description: str
    fixtures: frozenset[str]
    """Names of the fixtures that were available to it."""
    is_test: bool = True
    is_from_plugin: bool = False
    """Whether it is a fixture of a plugin: a suspect only if it had the model, or if nothing else ran."""


@dataclass(slots=True)
class SessionHistory:
    """The history of shared models and of torch's global state in one session.  Keeps no model alive."""

    global_state: GlobalStateHistory = field(default_factory=GlobalStateHistory)
    events: list[SessionEvent] = field(default_factory=list)
    """The events since the remembered model that was seen least recently."""
    _dropped: int = 0
    """How many older events were dropped."""
    _last_seen: MutableMapping[nn.Module, _LastSeen] = field(default_factory=WeakIdKeyDictionary)

    def record_event(self, event: SessionEvent) -> None:
        if self._last_seen:
            self.events.append(event)

    def record_model(self, module: nn.Module, snapshot: Snapshot, test: str) -> None:
        """Store the state of a shared model at the end of a guarded test, and drop events that are no longer needed."""
        self._last_seen[module] = _LastSeen(snapshot, test, self._dropped + len(self.events))
        old = min(seen.event_count for seen in self._last_seen.values()) - self._dropped
        del self.events[:old]
        self._dropped += old

    def find_drift(self, module: nn.Module, name: str, now: Snapshot) -> Drift | None:
        """Compare a shared model, whose name begins with that of its fixture, with the end of the last guarded test.

        Return the changes, and the events since, most likely cause first: events that had the model's fixture, then
        tests before fixtures, then the most recent ones.  None if nothing changed or the model was not seen before.
        """
        seen = self._last_seen.get(module)
        if seen is None:
            return None
        changes = snapshot.find_changes(name, seen.snapshot, now, modules.walk(module), None)
        changes = [change for change in changes if change.persistent]
        if not changes:
            return None
        fixture = name.partition(".")[0].partition("[")[0]
        since = list(reversed(self.events[seen.event_count - self._dropped :]))
        since = [event for event in since if fixture in event.fixtures or not event.is_from_plugin] or since
        since.sort(key=lambda event: (fixture not in event.fixtures, not event.is_test))
        return Drift(name, tuple(changes), seen.test, tuple(dict.fromkeys(event.description for event in since)))
