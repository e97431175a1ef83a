"""Whether the forward of a module depends on its mode."""

from __future__ import annotations

from torch import nn
from torch.jit import ScriptModule

from pytest_evalmode.observe.modules import Parts
from pytest_evalmode.observe.source import forward_code, model_graphs


def is_sensitive(module: nn.Module) -> bool:
    """Whether the forward of this very module, not its children's, depends on `training`."""
    if isinstance(module, ScriptModule):
        return model_graphs.is_sensitive(module)
    return forward_code.traits(module).sensitive


def has_mode(parts: Parts) -> bool:
    """Whether anything in it depends on `training`."""
    return any(is_sensitive(part) for _, part in parts)
