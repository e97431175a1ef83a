"""Observer of calls that train, set, convert or differentiate a model outside its forwards.

`backward()` and `autograd.grad()` call the same private function of torch, which is patched. A write to a single tensor
cannot be observed; only the change is found afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Call, Observer
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import ModelOperation

Kind = Literal["steps", "writes", "gradients"]

_KEY = "pytest-evalmode"
_APPLY_CODE = getattr(patches.module_apply.original, "__code__", None)


def mark_nodes(nodes: Iterable[Node], model: str) -> None:
    """Store the name of a model in the autograd nodes of its outputs.

    Autograd keeps the metadata of a node but never reads it.
    """
    for node in nodes:
        node_metadata(node)[_KEY] = model
        for observer in patches.run_backward.observers:
            observer.marked.add(model)


def node_metadata(node: Node) -> dict[str, str]:
    """Return the metadata of an autograd node; torch's type hints call it a method."""
    return cast(dict[str, str], node.metadata)


class ModelOperations(Observer):
    """The calls of a window: optimizer steps, writes to all tensors, and the first calls that computed gradients."""

    patched = patches.module_apply, patches.requires_grad, patches.load_state_dict, patches.run_backward

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        super().__init__()
        self.marked: set[str] = set()
        """The models with a marked node."""
        self._watch = watch
        self._user_lines = user_lines
        self._operations: dict[tuple[Kind, ModelOperation], None] = {}
        self._handle: RemovableHandle | None = None

    def start(self, *, strict: bool = False) -> None:
        super().start(strict=strict)
        self._handle = register_optimizer_step_post_hook(self._add_step)

    def stop(self) -> None:
        super().stop()
        if self._handle is not None:
            self._handle.remove()

    def pop_operations(self) -> dict[Kind, tuple[ModelOperation, ...]]:
        """Return the calls recorded so far and forget them."""
        recorded, self._operations = tuple(self._operations), {}
        kinds: tuple[Kind, ...] = ("steps", "writes", "gradients")
        return {kind: tuple(operation for each, operation in recorded if each == kind) for kind in kinds}

    def add_load(self, call: Call) -> None:
        self._add("writes", "load_state_dict()", _parameters(call.args[0]), call.frame)

    def add_requires_grad(self, call: Call) -> None:
        self._add("writes", "requires_grad_()", _parameters(call.args[0]), call.frame)

    def add_conversion(self, call: Call) -> None:
        """Record the call of `half()` or `to()` that led to this call of `_apply()`."""
        frame: FrameType | None = call.frame
        while frame is not None and frame.f_code.co_name == "_apply":
            if frame.f_code is _APPLY_CODE:  # that of a parent, which converts its children
                return
            frame = frame.f_back
        if frame is not None:
            self._add("writes", f"{frame.f_code.co_name}()", _parameters(call.args[0]), frame)

    def add_gradients(self, call: Call) -> None:
        """Record a call of `backward()` or `autograd.grad()`.

        A graph may be large, and used in a loop. So it is searched only for models that are not found yet.
        """
        name = "backward()" if call.kwargs.get("accumulate_grad", True) else "autograd.grad()"
        found = (model for _, known in self._operations if known.name == name for model in known.models)
        models = _find_models(call.args[0], self.marked.difference(found))
        if models:
            self._operations["gradients", ModelOperation(models, name, self._user_lines.find_line(call.frame))] = None

    def _add_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self.errors:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            self._add("steps", f"{type(optimizer).__name__}.step()", parameters, sys._getframe(1))

    def _add(self, kind: Kind, name: str, parameters: Iterable[Tensor | None], frame: FrameType) -> None:
        """Record a call that is not repeated, with the models that own some of the parameters."""
        models = self._watch.registry.find_owners({id(each) for each in parameters if each is not None})
        if models:
            self._operations[kind, ModelOperation(models, name, self._user_lines.find_line(frame))] = None


def _parameters(module: nn.Module) -> Iterator[Tensor | None]:
    return (parameter for part in modules.all_modules(module) for parameter in part._parameters.values())


def _find_models(outputs: Iterable[Any], wanted: set[str]) -> tuple[str, ...]:
    """Return those of some models whose outputs are in the autograd graph of some tensors."""
    models: dict[str, None] = {}
    pending = [output.grad_fn for output in outputs if is_tensor(output)]
    seen = set()
    while pending and len(models) < len(wanted):
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        model = node_metadata(node).get(_KEY)
        if model in wanted:
            models[model] = None
        pending.extend(following for following, _ in node.next_functions)
    return tuple(models)
