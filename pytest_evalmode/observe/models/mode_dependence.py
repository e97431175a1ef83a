"""Mode-dependent modules: their forward differs between training and eval mode."""

from __future__ import annotations

from torch import nn

from pytest_evalmode.observe.modules import NamedModules
from pytest_evalmode.observe.private_api import ScriptModule
from pytest_evalmode.observe.source import forward_code, model_graphs


def is_mode_dependent(module: nn.Module) -> bool:
    """Return whether the module's own forward depends on `training`; its submodules do not count."""
    if isinstance(module, ScriptModule):
        return model_graphs.reads_training(module)
    return forward_code.module_traits(module).reads_training


def has_mode_dependent_part(parts: NamedModules) -> bool:
    """Return whether any of these modules is mode-dependent."""
    return any(is_mode_dependent(part) for _, part in parts)
