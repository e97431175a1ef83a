"""Did autograd record?  What came out of a forward, and what of that went in, tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter, methodcaller
from types import FrameType

from torch import Tensor, is_grad_enabled, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls import gradients
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.context import RAISED
from pytest_evalmode.observe.source import forward_code
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import Observation

_PARAMETERS, _VALUES, _FLAG = attrgetter("_parameters"), methodcaller("values"), attrgetter("requires_grad")


class AutogradCheck(ForwardCheck):
    """Notes the first part that recorded, and judges at the end why."""

    def begin(self) -> None:
        self.part: Observation | None = None
        self.stopped = False
        """Grad mode was on when the whole began, and off when a part had run."""

    def leave(self, part: nn.Module, output: object, frame: FrameType) -> None:
        outermost = self.forward
        if part is outermost.root:
            return
        on = is_grad_enabled()
        if outermost.grad_enabled and not on and output is not RAISED:
            self.stopped = True
        if not on or self.part is not None:
            return
        if (
            outermost.grad_enabled
            and output is not RAISED
            and self._holds(part)
            and not forward_code.module_traits(part).disables_grad
        ):
            self.part = Observation(outermost.part(part), None)
            outermost.autograd_recorded = True
        elif is_tensor(output) and requires_grad(output):
            cause = (
                None if outermost.grad_enabled else self.context.sites.find_line_inside(frame.f_back, outermost.frame)
            )
            self.part = Observation(outermost.part(part), cause, "its output requires grad")
            outermost.autograd_recorded = True

    def end(self, output: object) -> Mapping[str, object]:
        if not self.forward.is_model:
            return {"autograd": None}
        nodes = made(output, self.forward.inputs)
        found = self._judge(output, came_out=bool(nodes))
        if found is not None:
            gradients.mark_nodes(nodes, self.forward.model.name)
        return {"autograd": found}

    def _holds(self, part: nn.Module) -> bool:
        return modules.has_own_parameters(part) if self.context.strict else is_trainable(part)

    def _judge(self, output: object, *, came_out: bool) -> Observation | None:
        """Whether the forward recorded autograd, and why: told by what came out, else by what went in."""
        outermost, part = self.forward, self.part
        if not outermost.grad_enabled:
            if part is None and came_out:
                why = "grad mode was off, yet its output requires grad"
                part = Observation(outermost.part(outermost.root), None, why)
            return replace(part, enabled_by_forward=True) if part else None
        stopped = output is RAISED or self.stopped or forward_code.module_traits(outermost.root).disables_grad
        if stopped and not (part or came_out):
            return None
        what = self._requiring_grad()
        if not what and (came_out or (part and part.why)):
            what = "its output requires grad"
        if not what and not self.context.strict:
            return replace(part, why="grad mode was on and its parameters require grad") if part else None
        why = f"grad mode was on and {what}" if what else "grad mode was on"
        if self.context.sites.is_worker_thread():
            why += " (a worker thread: no_grad() holds only in the thread that enters it)"
        return Observation(outermost.part(outermost.root), None, why)

    def _requiring_grad(self) -> str:
        """What autograd would record for: parameters, else an input; nothing if neither requires grad."""
        parts, tree = self.forward.parts, self.forward.tree
        tables = map(_VALUES, map(_PARAMETERS, parts))
        parameters = [parameter for table in tables for parameter in table if parameter is not None]
        flags = list(map(_FLAG if peek_interpreter_stack() is None else requires_grad, parameters))
        if tree.grad_reason is None or tree.grad_reason[0] != flags:
            tree.grad_reason = flags, _told(self.forward.root)
        if tree.grad_reason[1]:
            return tree.grad_reason[1]
        return "an input requires grad" if any(map(requires_grad, _given(self.forward.inputs))) else ""


def _told(model: nn.Module) -> str:
    """The parameters that require grad, in words."""
    names = [
        f"{path}.{name}" if path else name
        for path, holder in modules.walk(model)
        for name, parameter in holder._parameters.items()
        if parameter is not None and requires_grad(parameter)
    ]
    if len(names) > 1:
        return f"{names[0]} and {len(names) - 1} more of its parameters require grad"
    return f"{names[0]} requires grad" if names else ""


def made(output: object, inputs: tuple[tuple[object, ...], Mapping[str, object]]) -> list[Node]:
    """How autograd made what came out and did not go in, where it knows that."""
    nodes = [(id(leaf), node) for leaf in _leaves(output) if (node := leaf.grad_fn) is not None]
    went_in = {id(leaf) for leaf in _given(inputs)} if nodes else ()
    return [node for key, node in nodes if key not in went_in]


def is_trainable(module: nn.Module) -> bool:
    """Whether a parameter of this very module, not of its children, requires grad."""
    return any(parameter is not None and requires_grad(parameter) for parameter in module._parameters.values())


def _given(inputs: tuple[tuple[object, ...], Mapping[str, object]]) -> list[Tensor]:
    return [leaf for value in (*inputs[0], *inputs[1].values()) for leaf in _leaves(value)]


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
