"""Whether the forward of a module depends on its mode."""

from __future__ import annotations

from torch import nn
from torch.jit import ScriptModule

from pytest_evalmode.observe.modules import NamedModules
from pytest_evalmode.observe.source import forward_code, model_graphs


def is_mode_dependent(module: nn.Module) -> bool:
    """Whether the forward of this very module, not its children's, depends on `training`."""
    if isinstance(module, ScriptModule):
        return model_graphs.reads_training(module)
    return forward_code.module_traits(module).reads_training


def has_mode_dependent_part(parts: NamedModules) -> bool:
    """Whether anything in it depends on `training`."""
    return any(is_mode_dependent(part) for _, part in parts)
