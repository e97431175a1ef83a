"""Every `load_state_dict(strict=False)` -> Load.

`nn.Module.load_state_dict` is wrapped while a strict window is open: it has hooks, but no global one.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from pytest_evalmode.observe.models import type_name
from pytest_evalmode.observe.sites import Sites
from pytest_evalmode.observe.watch import Watch
from pytest_evalmode.observe.wrapped import Wrapped
from pytest_evalmode.trace import Load, Part


class Loads:
    """Observes the loads of a window."""

    def __init__(self, watch: Watch, sites: Sites) -> None:
        self.failures: list[Exception] = []
        self._loads: list[Load] = []
        self._watch = watch
        self._sites = sites

    def take(self) -> tuple[Load, ...]:
        taken, self._loads = self._loads, []
        return tuple(taken)

    def add(self, module: nn.Module, result: Any) -> None:
        """A load has ended in the calling frame."""
        try:
            if result is None or not (result.missing_keys or result.unexpected_keys):
                return
            caller = self._sites.outside(sys._getframe(2)).frame
            home = self._watch.find(module)
            name, path = (home[0].name, home[1]) if home else (self._watch.name_of(module), "")
            self._loads.append(
                Load(
                    Part(name, path, type_name(module)),
                    self._sites.site(caller.f_code, caller.f_lineno) if caller else None,
                    tuple(result.missing_keys),
                    tuple(result.unexpected_keys),
                )
            )
        except Exception as error:
            self.failures.append(error)


loads: Wrapped[Loads] = Wrapped("load_state_dict")


@loads.by
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = loads.original(self, *args, **kwargs)
    for observer in loads.observers:
        observer.add(self, result)
    return result
