"""References that keep the models of a window alive for `--pdb`, which starts after the window has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pytest_evalmode.observe.forwards.observer import call_patch

_call_patch: Any = call_patch  # it is typed for `ForwardObserver`, but any class with `enter` and `leave` will do


class KeepAlive:
    """References to every module whose forward runs."""

    def __init__(self) -> None:
        self._modules: dict[int, nn.Module] = {}
        _call_patch.start(self)

    def stop(self) -> None:
        _call_patch.stop(self)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        self._modules[id(module)] = module
        return False

    def leave(self, module: nn.Module, output: object) -> None: ...
