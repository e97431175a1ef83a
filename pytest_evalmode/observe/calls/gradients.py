"""Observer of `backward()` and `autograd.grad()`: the models whose graph was used, and the user's line.

Both call the same private function of torch, which is patched while a window is open, so they are observed under each
of their names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node

from pytest_evalmode.observe import patches
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import ModelOperation

_KEY = "pytest-evalmode"


def mark_nodes(nodes: Iterable[Node], model: str) -> None:
    """Store the name of a model in the autograd nodes of its outputs.

    Autograd keeps the metadata of a node but never reads it.
    """
    for node in nodes:
        node_metadata(node)[_KEY] = model
        for observer in patches.run_backward.observers:
            observer.add_model(model)


def node_metadata(node: Node) -> dict[str, str]:
    """Return the metadata of an autograd node; torch's type hints call it a method."""
    return cast(dict[str, str], node.metadata)


class GradientCalls(Observer):
    """The first call of each kind in a window that computed gradients through a watched model.

    A graph may be large, and used in a loop. So it is searched only for models that are not found yet.
    """

    patched = (patches.run_backward,)

    def __init__(self, user_lines: UserLines) -> None:
        super().__init__()
        self._user_lines = user_lines
        self._marked: set[str] = set()
        """The models with a marked node."""
        self._operations: list[ModelOperation] = []

    def add_model(self, name: str) -> None:
        """Add a model with a marked node, to be searched for in the graphs of later calls."""
        self._marked.add(name)

    def pop_operations(self) -> tuple[ModelOperation, ...]:
        """Return the calls recorded so far and forget them."""
        recorded, self._operations = tuple(self._operations), []
        return recorded

    def add_call(self, outputs: Iterable[Tensor], *, accumulate: bool, frame: FrameType) -> None:
        """Record a call that computes gradients of `outputs`; `accumulate` if it adds them to `.grad`."""
        with self.errors:
            name = "backward()" if accumulate else "autograd.grad()"
            found = (model for call in self._operations if call.name == name for model in call.models)
            models = _find_models(outputs, self._marked.difference(found))
            if models:
                self._operations.append(ModelOperation(models, name, self._user_lines.find_line(frame)))


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


@patches.run_backward.replace_with
def _observed_run_backward(outputs: Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
    for observer in patches.run_backward.observers:
        observer.add_call(outputs, accumulate=kwargs.get("accumulate_grad", True), frame=sys._getframe(1))
    return patches.run_backward.original(outputs, *args, **kwargs)
