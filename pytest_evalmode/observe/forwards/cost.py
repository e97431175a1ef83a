"""How much of what it costs to observe forwards is in the times that their observer takes.

Not in them are the wrapper around each call, and what the caller's own code pays for caches that ours has emptied.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from time import perf_counter
from typing import cast

from torch import nn

from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.forwards.observer import ForwardObserver, wrap_call
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines

_PARTS = 10
_FORWARDS = 6
_TRIES = 10


class _Model(nn.Module):
    """Runs its parts by a method of its own, so that nobody else who observes forwards sees it."""

    def run(self) -> None:
        for part in cast(Iterator[_Model], self.children()):
            part.run()


@cache
def timed_share() -> float:
    """The share that is timed, above 0 and up to 1; found out once, on a model of our own."""
    model = _Model()
    model._modules.update({str(name): _Model() for name in range(_PARTS)})  # add_module() and eval() may be observed
    for part in (model, *model.children()):
        part.training = False

    def seconds() -> float:
        began = perf_counter()
        for _ in range(_FORWARDS):
            model.run()
        return perf_counter() - began

    sites = UserLines()
    observer = ForwardObserver(Watch(sites.site), sites, ModeChanges(sites))
    run: Patch[ForwardObserver] = Patch("run", owner=_Model)
    run.replace_with(wrap_call(run.original, run))
    plain = min(seconds() for _ in range(_TRIES))
    run.start(observer)
    tries: list[tuple[float, float]] = []
    for _ in range(_TRIES):
        before = observer.seconds
        tries.append((seconds() - plain, observer.seconds - before))
    run.stop(observer)
    cost, timed = min(tries)
    return timed / cost if cost > timed > 0 else 1.0
