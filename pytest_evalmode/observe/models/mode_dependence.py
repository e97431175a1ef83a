"""Mode-dependent modules: their forward differs between training and eval mode."""

from __future__ import annotations

from numbers import Number

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.model_code import forward_code, model_graphs
from pytest_evalmode.observe.private_api import BatchNorm, ScriptModule


def is_mode_dependent(module: nn.Module) -> bool:
    """Return whether the module's own forward depends on `training`, with its settings; submodules do not count."""
    if isinstance(module, ScriptModule):
        return model_graphs.reads_training(module)
    return forward_code.module_traits(module).reads_training and not _has_no_effect(module)


def _has_no_effect(module: nn.Module) -> bool:
    """Return whether the settings of a module that reads `training` make both modes the same."""
    forward = getattr(type(module), "forward", None)
    if "forward" in vars(module) or not modules.python_module(forward).startswith("torch.nn."):
        # A rate of zero, in a module that holds nothing else. If it draws all the same, `RandomDrawCheck` reports it.
        own = [value for name, value in vars(module).items() if name not in modules.TORCH_ATTRIBUTES]
        numbers = [value for value in own if isinstance(value, Number) and not isinstance(value, bool)]
        return bool(numbers) and not any(numbers) and not module._modules and not modules.own_tensors(module)
    if isinstance(module, (BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
        return module.running_mean is None and module.running_var is None
    if isinstance(module, modules.DROPOUTS):
        return module.p == 0
    match module:
        case nn.RNNBase():
            return not module.dropout or module.num_layers == 1
        case nn.MultiheadAttention():
            return not module.dropout
        case nn.TransformerEncoderLayer() | nn.TransformerEncoder():
            return True  # the mode selects the kernel; their dropouts are modules of their own
        case _:
            return False


def changes_result(module: nn.Module) -> bool:
    """Return whether training mode surely changes what a mode-dependent module computes.

    That is so for a norm with running statistics, and for a module that drops out with a probability that it stores.
    Other code that reads `training` may only choose a checkpoint or an additional output by it.
    """
    # The tables of a ScriptModule have no `get()`.
    if any(name == "running_mean" and buffer is not None for name, buffer in module._buffers.items()):
        return True
    if isinstance(module, ScriptModule) or module._modules or not forward_code.module_traits(module).may_draw:
        return False
    return any(type(value) in (int, float) and 0 < value <= 1 for value in vars(module).values())
