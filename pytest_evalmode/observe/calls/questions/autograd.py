"""What of a forward autograd knows: what came out of it, and what of that went in."""

from __future__ import annotations

from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.utils._pytree import tree_leaves

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state.fingerprint import is_tensor


def records(output: object, inputs: object) -> bool:
    """Whether something came out that autograd knows the making of, and that did not go in."""
    return bool(made(output, inputs))


def made(output: object, inputs: object) -> list[Tensor]:
    """What came out that autograd knows the making of, and that did not go in."""
    found = [leaf for leaf in _leaves(output) if leaf.grad_fn is not None]
    went_in = {id(leaf) for leaf in _leaves(inputs)} if found else set()
    return [leaf for leaf in found if id(leaf) not in went_in]


def requiring_grad(model: nn.Module, inputs: object) -> str:
    """What autograd would record for: parameters, else an input; nothing if neither requires grad."""
    names = [
        f"{path}.{name}" if path else name
        for path, holder in modules.walk(model)
        for name, parameter in holder._parameters.items()
        if parameter is not None and requires_grad(parameter)
    ]
    if len(names) > 1:
        return f"{names[0]} and {len(names) - 1} more of its parameters require grad"
    if names:
        return f"{names[0]} requires grad"
    return "an input requires grad" if any(map(requires_grad, _leaves(inputs))) else ""


def is_trainable(module: nn.Module) -> bool:
    """Whether a parameter of this very module, not of its children, requires grad."""
    return any(parameter is not None and requires_grad(parameter) for parameter in module._parameters.values())


def _leaves(value: object) -> list[Tensor]:
    if is_tensor(value):
        return [value]
    try:
        return [leaf for leaf in tree_leaves(value) if is_tensor(leaf)]
    except RecursionError:  # a list that contains itself
        return []


def requires_grad(tensor: Tensor) -> bool:
    """Whether a tensor requires grad, or the one beneath it that `vmap` has wrapped."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.requires_grad
