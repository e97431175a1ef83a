"""References that keep the models of a window alive for `--pdb`, which starts after the window has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pytest_evalmode.observe.patches import Observer, module_call


class KeepAlive(Observer):
    """References to every module whose forward runs."""

    patched = (module_call,)

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[int, nn.Module] = {}
        self.start()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Note that a forward starts. Its end is of no interest, so `leave` is never called."""
        self._modules[id(module)] = module
        return False
