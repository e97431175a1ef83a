"""The models of a window, kept alive for a debugger that looks at them after its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pytest_evalmode.observe.forwards.observer import call_patch

_calls: Any = call_patch  # to whoever is called for each forward it is all the same


class KeepAlive:
    """Holds every module whose forward runs."""

    def __init__(self) -> None:
        self._modules: dict[int, nn.Module] = {}
        _calls.start(self)

    def stop(self) -> None:
        _calls.stop(self)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        self._modules[id(module)] = module
        return False

    def leave(self, module: nn.Module, output: object) -> None: ...
