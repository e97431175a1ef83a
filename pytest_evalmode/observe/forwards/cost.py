"""Measurement of how much of the cost of observing forwards the observer's own timer covers.

The rest is the wrapper around each call, and the time that the model loses because the observer has emptied CPU caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from time import perf_counter
from typing import cast

from torch import nn

from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.forwards.observer import ForwardObserver, observe_calls
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines

_SUBMODULES = 10
_FORWARDS = 6
_REPEATS = 10


class _Model(nn.Module):
    """Runs its submodules by `run()`, so that no other observer of forwards sees them."""

    def run(self) -> None:
        for child in cast(Iterator[_Model], self.children()):
            child.run()


@cache
def timed_share() -> float:
    """Return the share of the cost that is timed, above 0 and up to 1, measured once on a small model."""
    model = _Model()
    # Not by add_module() and eval(): other observers may have patched them.
    model._modules.update({str(name): _Model() for name in range(_SUBMODULES)})
    for module in (model, *model.children()):
        module.training = False

    def run_seconds() -> float:
        start = perf_counter()
        for _ in range(_FORWARDS):
            model.run()
        return perf_counter() - start

    user_lines = UserLines()
    observer = ForwardObserver(Watch(user_lines.site), user_lines, ModeChanges(user_lines))
    run_patch = Patch(_Model, "run")
    observe_calls(run_patch, run_patch)
    unobserved = min(run_seconds() for _ in range(_REPEATS))
    run_patch.start(observer)
    runs: list[tuple[float, float]] = []
    for _ in range(_REPEATS):
        before = observer.seconds
        runs.append((run_seconds() - unobserved, observer.seconds - before))
    run_patch.stop(observer)
    cost, timed = min(runs)
    return timed / cost if cost > timed > 0 else 1.0
