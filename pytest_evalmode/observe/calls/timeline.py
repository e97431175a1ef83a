"""What happened in a window, in its order: who switched modes, which models ran."""

from __future__ import annotations

import threading
from types import CodeType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Event, Site

MOST = 40
"""What is kept of a window: a test that switches modes in a loop tells no more by its thousandth time."""

_Key = tuple[str, str, Site | tuple[CodeType, int] | None]


class Timeline:
    """Keeps the order of a window, for who asks to be shown it."""

    def __init__(self, watch: Watch, sites: UserLines) -> None:
        self._watch = watch
        self._sites = sites
        self._lock = threading.Lock()
        self._counts: list[dict[_Key, int]] = [{}]
        """Each begins with a switch; the forwards that follow are counted by model and line."""

    def add_mode_change(self, module: nn.Module, line: Site | None) -> None:
        """A user's line has called `train()` or `eval()`."""
        if line is None:
            return
        home = self._watch.find_model(modules.unwrap(module))
        name = ".".join(filter(None, (home[0].name, home[1]))) if home else self._watch.name_of(module)
        key: _Key = ("train()" if modules.training_flag(module) else "eval()", name, line)
        with self._lock:
            if key not in self._counts[-1]:
                self._counts.append({})
            self._note(key)

    def add_forward(self, model: TrackedModel) -> None:
        """A model begins to run; of what it consists is noted the first time."""
        if model.is_model:
            module = model.module()
            if module is not None and not model.outline:
                parts = modules.walk(module)
                model.outline = tuple((path, modules.type_name(part)) for path, part in parts)
            with self._lock:
                self._note(("forward", model.name, model.last_call))

    def pop_events(self) -> tuple[Event, ...]:
        """What happened so far; from now on it is noted anew."""
        with self._lock:
            counts, self._counts = self._counts, [{}]
        return tuple(
            Event(what, model, at if at is None or isinstance(at, Site) else self._sites.site(*at), count)
            for counted in counts
            for (what, model, at), count in counted.items()
        )

    def _note(self, key: _Key) -> None:
        counted = self._counts[-1]
        if key in counted or sum(map(len, self._counts)) < MOST:
            counted[key] = counted.get(key, 0) + 1
