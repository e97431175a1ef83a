"""The events of a window in their order: which modules were switched and which models ran."""

from __future__ import annotations

from types import CodeType

from torch import nn

from pytest_evalmode import forks
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Event, Site

MAX_EVENTS = 40
"""Number of different events recorded per window: a test that switches modes in a loop repeats itself."""

_Key = tuple[str, str, Site | tuple[CodeType, int] | None]


class Timeline:
    """The events of a window, for the HTML report."""

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        self._watch = watch
        self._user_lines = user_lines
        self._lock = forks.new_lock(self)
        self._counts: list[dict[_Key, int]] = [{}]
        """Each dict begins with a mode change; the forwards that follow are counted by model and line."""

    def add_mode_change(self, module: nn.Module, line: Site | None) -> None:
        """Record that a user's line has called `train()` or `eval()`."""
        if line is None:
            return
        name = ".".join(filter(None, self._watch.registry.locate(modules.unwrap(module))))
        key: _Key = ("train()" if modules.training_flag(module) else "eval()", name, line)
        with self._lock:
            if key not in self._counts[-1]:
                self._counts.append({})
            self._count(key)

    def add_forward(self, model: TrackedModel) -> None:
        """Record that a model begins to run, and the first time also its submodules."""
        if model.is_model:
            module = model.module()
            if module is not None and not model.outline:
                parts = modules.walk(module)
                model.outline = tuple((path, modules.type_name(part)) for path, part in parts)
            with self._lock:
                self._count(("forward", model.name, model.last_call))

    def pop_events(self) -> tuple[Event, ...]:
        """Return the events recorded so far and forget them."""
        with self._lock:
            counts, self._counts = self._counts, [{}]
        return tuple(
            Event(what, model, at if at is None or isinstance(at, Site) else self._user_lines.site(*at), count)
            for group in counts
            for (what, model, at), count in group.items()
        )

    def _count(self, key: _Key) -> None:
        group = self._counts[-1]
        if key in group or sum(map(len, self._counts)) < MAX_EVENTS:
            group[key] = group.get(key, 0) + 1
