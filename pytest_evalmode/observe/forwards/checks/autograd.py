"""Check for forwards that autograd recorded, judged by their parameters, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from operator import attrgetter, methodcaller
from types import FrameType

from torch import Tensor, is_grad_enabled, nn
from torch.autograd.graph import Node

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls import model_operations
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.context import RAISED, ForwardContext
from pytest_evalmode.observe.model_code import forward_code
from pytest_evalmode.observe.private_api import (
    get_unwrapped,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
    tree_leaves,
)
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import Observation

_PARAMETERS, _VALUES, _FLAG = attrgetter("_parameters"), methodcaller("values"), attrgetter("requires_grad")


class AutogradCheck(ForwardCheck):
    """Check that notes the first inner module that recorded, and finds the reason when the forward ends."""

    def begin(self) -> None:
        self.inner: Observation | None = None
        """The first inner module that recorded; None until then."""
        self.grad_was_disabled = False
        """Whether grad mode was on when the forward started, and off when an inner module ended."""

    def leave(self, module: nn.Module, output: object, frame: FrameType) -> None:
        forward = self.forward
        if module is forward.root:
            return
        enabled = is_grad_enabled()
        if forward.grad_enabled and not enabled and output is not RAISED:
            self.grad_was_disabled = True
        if not enabled or self.inner is not None:
            return
        if (
            forward.grad_enabled
            and output is not RAISED
            and self._has_recordable_parameters(module)
            and not forward_code.module_traits(module).disables_grad
        ):
            self.inner = Observation(forward.module_info(module), None)
        elif is_tensor(output) and requires_grad(output):
            # If the caller had left grad mode on, the fault is the caller's, not that of a line in the model.
            user_lines = self.window.user_lines
            cause = None if forward.grad_enabled else user_lines.find_line(frame.f_back, forward.frame)
            self.inner = Observation(forward.module_info(module), cause, "its output requires grad")

    def end(self, output: object) -> Mapping[str, object]:
        if not self.forward.is_model:
            return {"autograd": None}
        nodes = output_nodes(output, self.forward.inputs)
        observation = self._observe(output, has_graph=bool(nodes))
        if observation is not None:
            model_operations.mark_nodes(nodes, self.forward.model.name)
        return {"autograd": observation}

    def _has_recordable_parameters(self, module: nn.Module) -> bool:
        return modules.has_own_parameters(module) if self.window.strict else is_trainable(module)

    def _observe(self, output: object, *, has_graph: bool) -> Observation | None:
        """Return why the forward recorded autograd; None if it did not."""
        forward, inner = self.forward, self.inner
        if not forward.grad_enabled:
            if inner is None and has_graph:
                why = "grad mode was off, yet its output requires grad"
                inner = Observation(forward.module_info(forward.root), None, why)
            return replace(inner, enabled_by_forward=True) if inner else None
        # A forward that raised, or that turns grad mode off by itself, only counts if it has recorded something.
        stopped = output is RAISED or self.grad_was_disabled or forward_code.module_traits(forward.root).disables_grad
        if stopped and not (inner or has_graph):
            return None
        reason = self._grad_reason()
        if not reason and (has_graph or (inner and inner.why)):
            reason = "its output requires grad"
        if not reason and not self.window.strict:
            return replace(inner, why="grad mode was on and its parameters require grad") if inner else None
        why = f"grad mode was on and {reason}" if reason else "nothing requires grad"
        if self.window.user_lines.is_worker_thread():
            why += " (in a worker thread: no_grad() only affects the thread that enters it)"
        return Observation(forward.module_info(forward.root), None, why, recorded=bool(reason))

    def _grad_reason(self) -> str:
        """Return a phrase that says which parameters or whether an input requires grad; empty if none does."""
        flags = grad_flags(self.forward)
        known_flags, reason = self.forward.tree.caches.get(AutogradCheck, (None, ""))
        if flags != known_flags:
            reason = _describe_parameters(self.forward.root)
            self.forward.tree.caches[AutogradCheck] = flags, reason
        if not reason and any(map(requires_grad, _input_tensors(self.forward.inputs))):
            return "an input requires grad"
        return str(reason)


def grad_flags(forward: ForwardContext) -> list[bool]:
    """Return whether each parameter of a forward's modules requires grad; they are read once, as they are many."""
    if not forward.grad_flags:
        tables = map(_VALUES, map(_PARAMETERS, forward.parts))
        parameters = [parameter for table in tables for parameter in table if parameter is not None]
        # Outside of `vmap` and the like no parameter is wrapped, and the plain attribute is much faster.
        forward.grad_flags.extend(map(_FLAG if peek_interpreter_stack() is None else requires_grad, parameters))
    return forward.grad_flags


def _describe_parameters(model: nn.Module) -> str:
    """Return a phrase that names the parameters that require grad; empty if there are none."""
    names = [
        f"{path}.{name}".lstrip(".")
        for path, module in modules.walk(model)
        for name, parameter in module._parameters.items()
        if parameter is not None and requires_grad(parameter)
    ]
    if len(names) > 1:
        return f"{names[0]} and {len(names) - 1} more of its parameters require grad"
    return f"{names[0]} requires grad" if names else ""


def output_nodes(output: object, inputs: tuple[tuple[object, ...], Mapping[str, object]]) -> list[Node]:
    """Return the autograd nodes of the output tensors that are not also inputs."""
    nodes = [(id(tensor), node) for tensor in _tensors(output) if (node := tensor.grad_fn) is not None]
    input_ids = {id(tensor) for tensor in _input_tensors(inputs)} if nodes else ()
    return [node for key, node in nodes if key not in input_ids]


def is_trainable(module: nn.Module) -> bool:
    """Return whether a parameter of the module itself, not of its children, requires grad."""
    return any(parameter is not None and requires_grad(parameter) for parameter in module._parameters.values())


def _input_tensors(inputs: tuple[tuple[object, ...], Mapping[str, object]]) -> list[Tensor]:
    return [tensor for value in (*inputs[0], *inputs[1].values()) for tensor in _tensors(value)]


def _tensors(value: object) -> list[Tensor]:
    if is_tensor(value):
        return [value]
    try:
        leaves = tree_leaves(value)
        fields = [vars(leaf) for leaf in leaves if is_dataclass(leaf) and hasattr(leaf, "__dict__")]
        return [leaf for leaf in (*leaves, *(tree_leaves(fields) if fields else ())) if is_tensor(leaf)]
    except RecursionError:  # a list that contains itself
        return []


def requires_grad(tensor: Tensor) -> bool:
    """Return whether a tensor requires grad; if `vmap` has wrapped it, whether the wrapped tensor does."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.requires_grad
